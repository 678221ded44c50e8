<?php
// What Composer would write for firebase/php-jwt, for a copy of its repository.
spl_autoload_register(function (string $class): void {
    if (str_starts_with($class, 'Firebase\\JWT\\')) {
        require __DIR__ . '/firebase/php-jwt/src/' . substr($class, strlen('Firebase\\JWT\\')) . '.php';
    }
});
