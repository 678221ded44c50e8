<?php
// The same service for PHP-FPM.
$body = file_get_contents('php://input');
header('Content-Type: application/json');
echo json_encode([
    'method' => $_SERVER['REQUEST_METHOD'],
    'path' => $_SERVER['REQUEST_URI'],
    'openid' => $_SERVER['HTTP_X_OPENID'] ?? null,
    'host' => $_SERVER['HTTP_HOST'],
    'length' => strlen($body),
    'sha256' => hash('sha256', $body),
], JSON_UNESCAPED_SLASHES);
