// An example service: verifies the identity that wxgate has signed.

import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.*;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.*;
import java.net.http.*;
import java.security.*;
import java.security.spec.X509EncodedKeySpec;
import java.time.*;
import java.util.*;
import java.util.concurrent.Executors;

public class Identity {
    /** As identity.jwt.header: with "Authorization" this is an OAuth2 resource server. */
    static final String HEADER = System.getenv().getOrDefault("WXGATE_HEADER", "X-Wxgate-Jwt");

    /** What wxgate says about the user. Not every user has all of it: the others are null. */
    record User(String appId, String openid, String unionid, String userId) {
        String json() {
            return "{\"app_id\":%s,\"openid\":%s,\"unionid\":%s,\"user_id\":%s}".formatted(
                Json.text(appId), Json.text(openid), Json.text(unionid), Json.text(userId));
        }
    }

    @SuppressWarnings("serial")
    static class Unverified extends Exception {}

    @SuppressWarnings("serial")
    static class NoKeys extends Exception {}

    /** The algorithms of wxgate: their names in JWK and in the JDK, and what a public key begins with in X.509. */
    enum Algorithm {
        ES256("EC", "P-256", "EC", "SHA256withECDSAinP1363Format",
            "3059301306072a8648ce3d020106082a8648ce3d03010703420004"),
        EdDSA("OKP", "Ed25519", "Ed25519", "Ed25519", "302a300506032b6570032100");

        final String type, curve, keys, signatures;
        final byte[] prefix;

        Algorithm(String type, String curve, String keys, String signatures, String prefix) {
            this.type = type;
            this.curve = curve;
            this.keys = keys;
            this.signatures = signatures;
            this.prefix = HexFormat.of().parseHex(prefix);
        }

        boolean fits(Map<?, ?> jwk) {
            return name().equals(jwk.get("alg")) && "sig".equals(jwk.get("use")) && type.equals(jwk.get("kty"))
                && curve.equals(jwk.get("crv"));
        }

        Key key(Map<?, ?> jwk) throws GeneralSecurityException {
            var encoded = new ByteArrayOutputStream();
            encoded.writeBytes(prefix);
            encoded.writeBytes(decode((String) jwk.get("x")));
            if (this == ES256) encoded.writeBytes(decode((String) jwk.get("y")));
            var key = KeyFactory.getInstance(keys).generatePublic(new X509EncodedKeySpec(encoded.toByteArray()));
            return new Key(this, key);
        }
    }

    static byte[] decode(String text) {
        Json.check(!text.contains("="));    // base64url without padding
        return Base64.getUrlDecoder().decode(text);
    }

    record Key(Algorithm algorithm, PublicKey key) {
        boolean signed(byte[] content, byte[] signature) throws GeneralSecurityException {
            var verifier = Signature.getInstance(algorithm.signatures);
            verifier.initVerify(key);
            verifier.update(content);
            return verifier.verify(signature);
        }
    }

    /** The public keys of wxgate. */
    static class Keys {
        static final Duration LIFETIME = Duration.ofMinutes(5);    // the max-age of wxgate's JWKS
        // An unknown key may be a new one, but clients can make up as many as they like.
        static final Duration REFETCH_PAUSE = Duration.ofSeconds(10);
        static final Duration RETRY_PAUSE = Duration.ofSeconds(1);    // after a failure

        final URI url;
        final HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(2)).build();
        Map<String, Key> keys = Map.of();
        Instant fetched = Instant.MIN, tried = Instant.MIN;

        Keys(String url) {
            this.url = URI.create(url);
        }

        /** While one request fetches, the others wait for its result. */
        synchronized Key find(Object id) throws Unverified, NoKeys {
            var now = Instant.now();
            boolean old = fetched.isBefore(now.minus(LIFETIME)), unknown = !keys.containsKey(id);
            if (old && tried.isBefore(now.minus(RETRY_PAUSE)) || unknown && tried.isBefore(now.minus(REFETCH_PAUSE))) {
                tried = now;
                try {
                    keys = fetch();
                    fetched = now;
                    old = false;
                } catch (IOException | GeneralSecurityException | RuntimeException e) {
                    System.err.println("wxgate's keys: " + e);
                }
            }
            if (old) throw new NoKeys();
            var found = keys.get(id);
            if (found == null) throw new Unverified();
            return found;
        }

        Map<String, Key> fetch() throws IOException, GeneralSecurityException {
            var request = HttpRequest.newBuilder(url).timeout(Duration.ofSeconds(2)).build();
            HttpResponse<String> response;
            try {
                response = client.send(request, HttpResponse.BodyHandlers.ofString());
            } catch (InterruptedException e) {
                throw new IllegalStateException("nobody interrupts these threads", e);
            }
            if (response.statusCode() != 200) throw new IOException("status " + response.statusCode());
            var found = new HashMap<String, Key>();
            for (Object each : (List<?>) Json.object(response.body()).get("keys")) {
                var jwk = (Map<?, ?>) each;
                for (var algorithm : Algorithm.values())
                    if (algorithm.fits(jwk)) found.put((String) jwk.get("kid"), algorithm.key(jwk));
            }
            return found;
        }
    }

    /** Knows which tokens are for this service. */
    record Verifier(Keys keys, String issuer, String audience) {
        static final Duration LEEWAY = Duration.ofSeconds(5);    // the clocks of two machines differ

        User verify(String token) throws Unverified, NoKeys {
            try {
                var parts = token.split("\\.", -1);
                if (parts.length != 3) throw new Unverified();
                var header = Json.object(new String(decode(parts[0]), UTF_8));
                // A token of another kind, or one with extensions.
                if (!"JWT".equals(header.get("typ")) || header.containsKey("crit")) throw new Unverified();
                var key = keys.find(header.get("kid"));
                // The token names its algorithm, the key decides.
                var signed = (parts[0] + "." + parts[1]).getBytes(UTF_8);
                if (!key.algorithm.name().equals(header.get("alg")) || !key.signed(signed, decode(parts[2])))
                    throw new Unverified();
                return user(Json.object(new String(decode(parts[1]), UTF_8)));
            } catch (GeneralSecurityException | RuntimeException e) {    // It is not what a token looks like.
                throw new Unverified();
            }
        }

        User user(Map<?, ?> claims) throws Unverified {
            var now = Instant.now();
            var audiences = claims.get("aud") instanceof List<?> several ? several : Arrays.asList(claims.get("aud"));
            boolean valid = issuer.equals(claims.get("iss")) && audiences.contains(audience)
                && time(claims.get("exp")).isAfter(now.minus(LEEWAY))
                && !time(claims.get("iat")).isAfter(now.plus(LEEWAY))
                && (!claims.containsKey("nbf") || !time(claims.get("nbf")).isAfter(now.plus(LEEWAY)))
                && claims.get("sub") instanceof String openid && !openid.isEmpty()
                && claims.get("app_id") instanceof String app && !app.isEmpty();
            if (!valid) throw new Unverified();
            return new User((String) claims.get("app_id"), (String) claims.get("sub"),
                (String) claims.get("unionid"), (String) claims.get("user_id"));
        }

        static Instant time(Object claim) {
            return Instant.ofEpochSecond(((Number) claim).longValue());
        }
    }

    record Reply(int status, String body) {
        static Reply error(int status, String error, String action) {
            return new Reply(status, "{\"error\":\"%s\",\"action\":\"%s\"}".formatted(error, action));
        }
    }

    interface Page {
        Reply respond(HttpExchange exchange, User user);
    }

    /**
     * Only requests that have come through wxgate and have a user get past this. Without a valid token no
     * header of a request can be trusted, also not X-OpenId. The user is an argument, because all requests of a context
     * share the attributes of HttpExchange.
     */
    static HttpHandler protect(Verifier verifier, Page page) {
        return exchange -> {
            try (exchange) {
                Reply reply;
                try {
                    reply = page.respond(exchange, verifier.verify(token(exchange)));
                } catch (Unverified e) {
                    reply = Reply.error(401, "not_logged_in", "login");
                } catch (NoKeys e) {
                    reply = Reply.error(503, "no_keys", "retry");
                }
                var body = reply.body.getBytes(UTF_8);
                exchange.getResponseHeaders().set("Content-Type", "application/json");
                exchange.sendResponseHeaders(reply.status, body.length);
                exchange.getResponseBody().write(body);
            }
        };
    }

    static String token(HttpExchange exchange) throws Unverified {
        var value = exchange.getRequestHeaders().getFirst(HEADER);
        if (value == null) throw new Unverified();
        if (!HEADER.equals("Authorization")) return value;
        if (!value.startsWith("Bearer ")) throw new Unverified();
        return value.substring("Bearer ".length());
    }

    static Reply respond(HttpExchange exchange, User user) {
        return switch (exchange.getRequestMethod() + exchange.getRequestURI()) {
            case "GET/me" -> new Reply(200, user.json());
            // The headers say the same without a signature. They are read after the token was verified, never instead.
            case "GET/headers" -> {
                var headers = exchange.getRequestHeaders();
                yield new Reply(200, new User(headers.getFirst("X-AppId"), headers.getFirst("X-OpenId"),
                    headers.getFirst("X-UnionId"), headers.getFirst("X-User-Id")).json());
            }
            default -> Reply.error(404, "not_found", "none");
        };
    }

    static String setting(String name) {
        return Objects.requireNonNull(System.getenv(name), name);
    }

    public static void main(String[] arguments) throws IOException {
        System.setProperty("sun.net.httpserver.maxReqTime", "30");
        var keys = new Keys(setting("WXGATE_JWKS_URL"));
        var verifier = new Verifier(keys, setting("WXGATE_ISSUER"), setting("WXGATE_AUDIENCE"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(setting("PORT"))), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", protect(verifier, Identity::respond));
        server.start();
    }

    /** JSON for this example, because the JDK has none. Use a library in your service. */
    static class Json {
        final String text;
        int at;

        Json(String text) {
            this.text = text;
        }

        static Map<?, ?> object(String text) {
            var json = new Json(text);
            var object = (Map<?, ?>) json.value(0);
            check(json.peek() == 0 && json.at == text.length());
            return object;
        }

        static String text(String value) {
            if (value == null) return "null";
            var quoted = new StringBuilder("\"");
            for (char c : value.toCharArray()) {
                if (c == '"' || c == '\\') quoted.append('\\').append(c);
                else if (c < ' ') quoted.append("\\u%04x".formatted((int) c));
                else quoted.append(c);
            }
            return quoted.append('"').toString();
        }

        Object value(int depth) {
            check(depth < 8);
            if (skip('{')) {
                var object = new HashMap<String, Object>();
                if (skip('}')) return object;
                do {
                    peek();
                    String name = string();
                    check(skip(':') && !object.containsKey(name));
                    object.put(name, value(depth + 1));
                } while (skip(','));
                check(skip('}'));
                return object;
            }
            if (skip('[')) {
                var array = new ArrayList<Object>();
                if (skip(']')) return array;
                do array.add(value(depth + 1)); while (skip(','));
                check(skip(']'));
                return array;
            }
            return peek() == '"' ? string() : word();
        }

        Object word() {
            int start = at;
            while (at < text.length() && "+-.0123456789Eaeflnrstu".indexOf(text.charAt(at)) >= 0) at++;
            String word = text.substring(start, at);
            switch (word) {
                case "null": return null;
                case "true", "false": return Boolean.valueOf(word);
                default:
                    check(word.matches("-?(0|[1-9]\\d*)(\\.\\d+)?([eE][+-]?\\d+)?"));
                    return Double.valueOf(word);
            }
        }

        String string() {
            check(text.charAt(at++) == '"');
            var value = new StringBuilder();
            for (char c; (c = text.charAt(at++)) != '"';) {
                check(c >= ' ');
                if (c != '\\') {
                    value.append(c);
                } else if ((c = text.charAt(at++)) == 'u') {
                    value.append((char) HexFormat.fromHexDigits(text, at, at += 4));
                } else {
                    int escape = "\"\\/bfnrt".indexOf(c);
                    check(escape >= 0);
                    value.append("\"\\/\b\f\n\r\t".charAt(escape));
                }
            }
            return value.toString();
        }

        boolean skip(char wanted) {
            if (peek() != wanted) return false;
            at++;
            return true;
        }

        char peek() {
            while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
            return at < text.length() ? text.charAt(at) : 0;
        }

        static void check(boolean holds) {
            if (!holds) throw new IllegalArgumentException("not JSON");
        }
    }
}
