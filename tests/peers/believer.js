// A service that believes its headers, reads as leniently as Node can, and writes down what
// it believed: one line of JSON a request, in the file that it is given.
const fs = require('node:fs');
const http = require('node:http');

const server = http.createServer({ insecureHTTPParser: true }, (request, response) => {
  const openid = request.headers['x-openid'] ?? '';
  const line = `${request.method} ${request.url} HTTP/${request.httpVersion}`;
  const id = request.headers['x-request-id'] ?? '';
  fs.appendFileSync(process.argv[2], JSON.stringify({ id, openid, line }) + '\n');
  response.end(JSON.stringify({ openid: [openid], target: request.url }));
});

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
