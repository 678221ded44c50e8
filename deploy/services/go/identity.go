// An example service: verifies the identity that wxgate has signed.
//
// With the version of the library that Debian has. In github.com/go-jose/go-jose/v4 jwt.ParseSigned also
// takes the list of algorithms, and Audience of jwt.Expected is called AnyAudience.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"gopkg.in/square/go-jose.v2"
	"gopkg.in/square/go-jose.v2/jwt"
)

const (
	keysLifetime = 5 * time.Minute  // The max-age of wxgate's JWKS.
	refetchPause = 10 * time.Second // An unknown key may be a new one, but clients can make up as many as they like.
	retryPause   = time.Second      // After a failure.
	leeway       = 5 * time.Second  // The clocks of two machines differ.
)

var (
	errUnverified = errors.New("no valid token")
	errNoKeys     = errors.New("no keys to verify it with")
)

// Identity is what wxgate says about the user, with the names of its claims. Not every user has all of it.
type Identity struct {
	AppID   *string `json:"app_id"`
	OpenID  *string `json:"openid"`
	UnionID *string `json:"unionid"`
	UserID  *string `json:"user_id"`
}

// Keys are the public keys of wxgate.
type Keys struct {
	url            string
	mutex          sync.Mutex
	set            jose.JSONWebKeySet
	fetched, tried time.Time
}

// Find returns the key with this id. The error is errUnverified or errNoKeys.
func (k *Keys) Find(id string) (*jose.JSONWebKey, error) {
	k.mutex.Lock() // While one request fetches, the others wait for its result.
	defer k.mutex.Unlock()
	old, unknown := time.Since(k.fetched) > keysLifetime, len(k.set.Key(id)) == 0
	pause := time.Since(k.tried)
	if old && pause > retryPause || unknown && pause > refetchPause {
		k.tried = time.Now()
		set, err := fetch(k.url)
		if err != nil {
			log.Printf("wxgate's keys: %v", err)
		} else {
			k.set, k.fetched, old = set, time.Now(), false
		}
	}
	if old {
		return nil, errNoKeys
	}
	if found := k.set.Key(id); len(found) == 1 {
		return &found[0], nil
	}
	return nil, errUnverified
}

func fetch(url string) (set jose.JSONWebKeySet, err error) {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return set, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return set, fmt.Errorf("the key set has status %d", response.StatusCode)
	}
	return set, json.NewDecoder(response.Body).Decode(&set)
}

// Verifier knows which tokens are for this service.
type Verifier struct {
	keys             *Keys
	issuer, audience string
}

func (v *Verifier) verify(text string) (*Identity, error) {
	if strings.Count(text, ".") != 2 { // The library accepts the JSON form, too.
		return nil, errUnverified
	}
	token, err := jwt.ParseSigned(text)
	if err != nil {
		return nil, errUnverified
	}
	header := token.Headers[0]
	if header.Algorithm != string(jose.ES256) && header.Algorithm != string(jose.EdDSA) {
		return nil, errUnverified
	}
	key, err := v.keys.Find(header.KeyID)
	if err != nil {
		return nil, err
	}
	var claims jwt.Claims
	var identity Identity
	if key.Algorithm != header.Algorithm || token.Claims(key.Key, &claims, &identity) != nil {
		return nil, errUnverified
	}
	expected := jwt.Expected{Issuer: v.issuer, Audience: jwt.Audience{v.audience}, Time: time.Now()}
	if claims.ValidateWithLeeway(expected, leeway) != nil {
		return nil, errUnverified
	}
	if claims.Expiry == nil || claims.Subject == "" || identity.AppID == nil { // The library does not require them.
		return nil, errUnverified
	}
	identity.OpenID = &claims.Subject
	return &identity, nil
}

type identityKey struct{}

// Protect lets only those requests through that have come through wxgate and have a user. Without a
// valid token no header of a request can be trusted, also not X-OpenId.
func (v *Verifier) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		identity, err := v.verify(r.Header.Get("X-Wxgate-Jwt"))
		switch {
		case errors.Is(err, errUnverified):
			respond(w, http.StatusUnauthorized, map[string]string{"error": "not_logged_in", "action": "login"})
		case err != nil:
			respond(w, http.StatusServiceUnavailable, map[string]string{"error": "no_keys", "action": "retry"})
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, identity)))
		}
	})
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func me(w http.ResponseWriter, r *http.Request) {
	respond(w, http.StatusOK, r.Context().Value(identityKey{}))
}

// The headers say the same without a signature. They are read after the token was verified, never instead.
func headers(w http.ResponseWriter, r *http.Request) {
	header := func(name string) *string {
		if value := r.Header.Get(name); value != "" {
			return &value
		}
		return nil
	}
	respond(w, http.StatusOK, Identity{header("X-AppId"), header("X-OpenId"), header("X-UnionId"), header("X-User-Id")})
}

func setting(name string) string {
	value := os.Getenv(name)
	if value == "" { // An empty issuer or audience would be one that is not checked.
		log.Fatalf("%s is not set", name)
	}
	return value
}

func main() {
	verifier := &Verifier{&Keys{url: setting("WXGATE_JWKS_URL")}, setting("WXGATE_ISSUER"), setting("WXGATE_AUDIENCE")}
	mux := http.NewServeMux()
	mux.HandleFunc("/me", me)
	mux.HandleFunc("/headers", headers)
	server := http.Server{Addr: "127.0.0.1:" + setting("PORT"), Handler: verifier.Protect(mux), ReadTimeout: 30 * time.Second}
	log.Fatal(server.ListenAndServe())
}
