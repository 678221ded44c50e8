// An example service: phone numbers and subscribe messages from wxgate's internal API.

import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.*;
import java.io.IOException;
import java.net.*;
import java.net.http.*;
import java.time.Duration;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;

public class Service {
    record Reply(int status, String body) {
        static Reply error(int status, String error, String action) {
            return new Reply(status, "{\"error\":\"%s\",\"action\":\"%s\"}".formatted(error, action));
        }
    }

    static final HttpClient CLIENT = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(2)).build();

    // The JDK has no JSON parser. This finds numbers, and strings without escapes; use a parser in your service.
    static String find(String name, String json) {
        var found = Pattern.compile("\"" + name + "\"\\s*:\\s*(\"[^\"\\\\]*\"|-?\\d+)").matcher(json);
        return found.find() ? found.group(1).replace("\"", "") : "";
    }

    static Reply callGateway(String path, String body) {
        var request = HttpRequest.newBuilder(URI.create(System.getenv("WXGATE_INTERNAL_URL") + path))
            .header("Authorization", "Bearer " + System.getenv("WXGATE_INTERNAL_TOKEN"))
            .header("Content-Type", "application/json").timeout(Duration.ofSeconds(15))
            .POST(HttpRequest.BodyPublishers.ofString(body)).build();
        try {
            var response = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
            int status = response.statusCode();
            if (status == 200) return new Reply(200, response.body());
            // 401 and 403 are about this service's token, not about the user.
            if (status == 401 || status == 403) status = 502;
            return Reply.error(status, find("error", response.body()), find("action", response.body()));
        } catch (InterruptedException e) {
            throw new IllegalStateException("nobody interrupts these threads", e);
        } catch (IOException e) {    // Not "retry": the gateway may have used the code.
            return Reply.error(502, "gateway_unreachable", "none");
        }
    }

    static Reply phone(String user, String app, String body) {
        var call = "{\"app_id\":\"%s\",\"openid\":\"%s\",\"code\":\"%s\"}".formatted(app, user, find("code", body));
        var found = callGateway("/v1/phone-number", call);
        if (found.status != 200) return found;
        return new Reply(200, "{\"phone_number\":\"%s\"}".formatted(find("phone_number", found.body)));
    }

    static Reply notify(String user, String app) {
        var message = "{\"touser\":\"%s\",\"template_id\":\"%s\",\"data\":{\"thing1\":{\"value\":\"Tea\"}}}"
            .formatted(user, System.getenv("TEMPLATE_ID"));
        var sent = callGateway("/v1/wechat/" + app + "/cgi-bin/message/subscribe/send", message);
        if (sent.status != 200) return sent;
        return switch (find("errcode", sent.body)) {    // WeChat's errors have status 200.
            case "0" -> new Reply(200, "{\"sent\":true}");
            case "43101" -> Reply.error(409, "not_subscribed", "none");    // The user has not agreed to this message.
            default -> Reply.error(502, "not_sent", "none");
        };
    }

    static void handle(HttpExchange exchange) throws IOException {
        try (exchange) {
            // Only the gateway can set these headers. The body is the phone's: no user from there.
            String user = exchange.getRequestHeaders().getFirst("X-OpenId");
            String app = exchange.getRequestHeaders().getFirst("X-AppId");
            var body = new String(exchange.getRequestBody().readAllBytes(), UTF_8);
            var reply = user == null || app == null ? Reply.error(401, "not_logged_in", "login")
                : switch (exchange.getRequestMethod() + exchange.getRequestURI()) {
                    case "POST/phone" -> phone(user, app, body);
                    case "POST/notify" -> notify(user, app);
                    default -> Reply.error(404, "not_found", "none");
                };
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(reply.status, reply.body.getBytes(UTF_8).length);
            exchange.getResponseBody().write(reply.body.getBytes(UTF_8));
        }
    }

    public static void main(String[] arguments) throws IOException {
        System.setProperty("sun.net.httpserver.maxReqTime", "30");
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", Service::handle);
        server.start();
    }
}
