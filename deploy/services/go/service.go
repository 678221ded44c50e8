// An example service: phone numbers and subscribe messages from wxgate's internal API.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"
)

type fields = map[string]any

var gateway = &http.Client{Timeout: 15 * time.Second}

func failure(status int, word, action any) (int, fields) {
	return status, fields{"error": word, "action": action}
}

func callGateway(path string, body fields) (status int, result fields) {
	content, _ := json.Marshal(body) // Strings in maps: no error.
	request, err := http.NewRequest("POST", os.Getenv("WXGATE_INTERNAL_URL")+path, bytes.NewReader(content))
	if err != nil {
		return failure(500, "internal_error", "none")
	}
	token := "Bearer " + os.Getenv("WXGATE_INTERNAL_TOKEN")
	request.Header = http.Header{"Authorization": {token}, "Content-Type": {"application/json"}}
	response, err := gateway.Do(request)
	if err == nil {
		defer response.Body.Close()
		err = json.NewDecoder(response.Body).Decode(&result)
	}
	if err != nil { // Not "retry": the gateway may have used the code.
		return failure(502, "gateway_unreachable", "none")
	}
	if status = response.StatusCode; status == 200 {
		return status, result
	} else if status == 401 || status == 403 { // About this service's token, not about the user.
		status = 502
	}
	return failure(status, result["error"], result["action"])
}

func phone(r *http.Request, user, app string) (int, fields) {
	var given struct{ Code string }
	if err := json.NewDecoder(r.Body).Decode(&given); err != nil {
		return failure(400, "bad_request", "none")
	}
	status, found := callGateway("/v1/phone-number", fields{"app_id": app, "openid": user, "code": given.Code})
	if status == 200 {
		found = fields{"phone_number": found["phone_number"]}
	}
	return status, found
}

func notify(user, app string) (int, fields) {
	data := fields{"thing1": fields{"value": "Tea"}}
	message := fields{"touser": user, "template_id": os.Getenv("TEMPLATE_ID"), "data": data}
	status, sent := callGateway("/v1/wechat/"+app+"/cgi-bin/message/subscribe/send", message)
	switch { // WeChat's errors have status 200. 43101: the user has not agreed to this message.
	case status != 200:
		return status, sent
	case sent["errcode"] == 0.0:
		return 200, fields{"sent": true}
	case sent["errcode"] == 43101.0:
		return failure(409, "not_subscribed", "none")
	}
	return failure(502, "not_sent", "none")
}

func handle(w http.ResponseWriter, r *http.Request) {
	// Only the gateway can set these headers. The body is the phone's: no user from there.
	user, app := r.Header.Get("X-OpenId"), r.Header.Get("X-AppId")
	status, result := failure(404, "not_found", "none")
	switch {
	case user == "" || app == "":
		status, result = failure(401, "not_logged_in", "login")
	case r.Method+r.URL.Path == "POST/phone":
		status, result = phone(r, user, app)
	case r.Method+r.URL.Path == "POST/notify":
		status, result = notify(user, app)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(result)
}

func main() {
	http.HandleFunc("/", handle)
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadTimeout: 30 * time.Second}
	log.Fatal(server.ListenAndServe())
}
