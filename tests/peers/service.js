// A service as a team might have it: Node's own http, identity from the gateway's headers.
const http = require('node:http');

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const seen = {
      openid: request.headers['x-openid'] ?? null,
      path: request.url,
      body: Buffer.concat(chunks).toString(),
    };
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(seen));
  });
});

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
