<?php
// The smallest application of Laravel that has the example's middleware and routes.

use Illuminate\Config\Repository;
use Illuminate\Contracts;
use Illuminate\Foundation\Application;
use Illuminate\Foundation\Bootstrap;
use Illuminate\Foundation\Exceptions\Handler;
use Illuminate\Foundation\Http\Kernel;
use Illuminate\Http\Request;

require 'Illuminate/autoload.php';
require 'GuzzleHttp/autoload.php';
require getenv('VENDOR') . '/autoload.php';
require getenv('EXAMPLE') . '/VerifyIdentity.php';

$base = getenv('BASE');
$app = new Application($base);
$app->instance('config', new Repository([
    'app' => [
        'name' => 'example',
        'env' => 'production',
        'debug' => false,
        'locale' => 'en',
        'fallback_locale' => 'en',
        'providers' => [
            Illuminate\Cache\CacheServiceProvider::class,
            Illuminate\Filesystem\FilesystemServiceProvider::class,
            Illuminate\Foundation\Providers\FoundationServiceProvider::class,
            Illuminate\Translation\TranslationServiceProvider::class,
            Illuminate\View\ViewServiceProvider::class,
        ],
    ],
    'cache' => ['default' => 'apc', 'prefix' => 'example', 'stores' => ['apc' => ['driver' => 'apc']]],
    'logging' => ['default' => 'errorlog', 'channels' => ['errorlog' => ['driver' => 'errorlog']]],
    'view' => ['paths' => ["$base/resources/views"], 'compiled' => "$base/storage/framework/views"],
    'services' => ['wxgate' => [
        'jwks_url' => getenv('WXGATE_JWKS_URL'),
        'issuer' => getenv('WXGATE_ISSUER'),
        'audience' => getenv('WXGATE_AUDIENCE'),
    ]],
]));
$app->detectEnvironment(fn () => 'production');
$app->singleton(Contracts\Debug\ExceptionHandler::class, Handler::class);
$app->booted(fn () => require getenv('EXAMPLE') . '/routes.php');

$kernel = new class($app, $app['router']) extends Kernel {
    // Without those that read files of the application.
    protected $bootstrappers = [
        Bootstrap\HandleExceptions::class,
        Bootstrap\RegisterFacades::class,
        Bootstrap\RegisterProviders::class,
        Bootstrap\BootProviders::class,
    ];
};
$app->instance(Contracts\Http\Kernel::class, $kernel);
$request = Request::capture();
$response = $kernel->handle($request);
$response->send();
$kernel->terminate($request, $response);
