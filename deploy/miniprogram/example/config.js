// The gateway: `deploy/dev demo` starts one here. In your app this is an https address that
// stands on the list of request domains.
const baseUrl = "http://127.0.0.1:8080";

// The simulated WeChat takes codes like this one, and the developer tools have no real ones
// without an app of yours. In your app leave this out: the client takes `wx` by itself.
const login = ({ success }) => success({ code: `user-tools-${Date.now()}`, errMsg: "login:ok" });
const phone = Object.create(wx, { login: { value: login } });

module.exports = { baseUrl, phone };
