const { createClient } = require("./wxgate-client.js");
const { baseUrl, phone } = require("./config.js");

App({
  // One client for the whole app: its calls share one session.
  client: createClient({ baseUrl, wx: phone }),
});
