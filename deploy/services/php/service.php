<?php
// An example service: phone numbers and subscribe messages from wxgate's internal API.
declare(strict_types=1);

function respond(int $status, array $body): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    exit(json_encode($body));
}

function fail(int $status, string $error, string $action = 'none'): never
{
    respond($status, ['error' => $error, 'action' => $action]);
}

function callGateway(string $path, array $body): array
{
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => ['Authorization: Bearer ' . getenv('WXGATE_INTERNAL_TOKEN'), 'Content-Type: application/json'],
        'content' => json_encode($body, JSON_THROW_ON_ERROR),
        'timeout' => 15,
        'follow_location' => 0,
        'ignore_errors' => true,    // responses with an error status have a body, too
    ]]);
    $content = @file_get_contents(getenv('WXGATE_INTERNAL_URL') . $path, false, $context);
    $result = $content === false ? null : json_decode($content, true);
    if (!is_array($result)) {
        fail(502, 'gateway_unreachable');    // not "retry": the gateway may have used the code
    }
    $status = (int) explode(' ', $http_response_header[0])[1];
    if ($status === 200) {
        return $result;
    }
    // 401 and 403 are about this service's token, not about the user.
    $status = in_array($status, [401, 403], true) ? 502 : $status;
    fail($status, $result['error'] ?? 'unexpected_response', $result['action'] ?? 'none');
}

// Only the gateway can set these headers. The body is the phone's: no user from there.
$user = $_SERVER['HTTP_X_OPENID'] ?? '';
$app = $_SERVER['HTTP_X_APPID'] ?? '';
if ($user === '' || $app === '') {
    fail(401, 'not_logged_in', 'login');
}

switch ($_SERVER['REQUEST_METHOD'] . ' ' . $_SERVER['REQUEST_URI']) {
    case 'POST /phone':
        $code = json_decode(file_get_contents('php://input'), true)['code'] ?? null;
        if (!is_string($code)) {
            fail(400, 'bad_request');
        }
        $found = callGateway('/v1/phone-number', ['app_id' => $app, 'openid' => $user, 'code' => $code]);
        respond(200, ['phone_number' => $found['phone_number']]);
    case 'POST /notify':
        $data = ['thing1' => ['value' => 'Tea']];
        $message = ['touser' => $user, 'template_id' => getenv('TEMPLATE_ID'), 'data' => $data];
        $sent = callGateway("/v1/wechat/$app/cgi-bin/message/subscribe/send", $message);
        // WeChat's errors have status 200. 43101: the user has not agreed to this message.
        match ($sent['errcode'] ?? null) {
            0 => respond(200, ['sent' => true]),
            43101 => fail(409, 'not_subscribed'),
            default => fail(502, 'not_sent'),
        };
    default:
        fail(404, 'not_found');
}
