<?php
// A service that knows its users by PHP's own session only, as old ones do.
session_save_path(__DIR__ . '/sessions');
session_set_cookie_params(['path' => '/', 'secure' => false, 'httponly' => true]);
session_start();
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if ($path === '/sign-in') {
    session_regenerate_id(true);
    $_SESSION['user'] = $_SERVER['HTTP_X_OPENID'];
    setcookie('seen', 'yes', time() + 3600, '/');
    setcookie('cart', 'one', ['path' => '/cart', 'samesite' => 'Lax']);
} elseif ($path === '/sign-out') {
    session_destroy();
    setcookie('seen', '', time() - 3600, '/');
} else {
    $_SESSION['count'] = ($_SESSION['count'] ?? 0) + 1;
}
header('Content-Type: application/json');
echo json_encode([
    'user' => $_SESSION['user'] ?? null,
    'count' => $_SESSION['count'] ?? 0,
    'cookies' => array_values(array_diff(array_keys($_COOKIE), ['PHPSESSID'])),
]);
