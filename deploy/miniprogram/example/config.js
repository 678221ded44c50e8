// URL of the gateway: `deploy/dev demo` starts one at this address. In your app this is an https
// URL whose domain is in the list of request domains.
const baseUrl = "http://127.0.0.1:8080";

// The simulated WeChat accepts codes like this one. The developer tools return real codes only for
// an app id of your own. In your app, remove this: the client uses the global `wx` by default.
const login = ({ success }) => success({ code: `user-tools-${Date.now()}`, errMsg: "login:ok" });
const phone = Object.create(wx, { login: { value: login } });

module.exports = { baseUrl, phone };
