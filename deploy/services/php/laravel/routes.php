<?php

// routes/api.php or routes/web.php. All that the service has belongs into the group.

use App\Http\Middleware\VerifyIdentity;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Route;

Route::middleware(VerifyIdentity::class)->group(function () {
    Route::get('/me', fn (Request $request) => response()->json($request->attributes->get('identity')));

    // The headers say the same without a signature. They are read after the token was verified, never instead.
    Route::get('/headers', fn (Request $request) => response()->json([
        'app_id' => $request->header('X-AppId'),
        'openid' => $request->header('X-OpenId'),
        'unionid' => $request->header('X-UnionId'),
        'user_id' => $request->header('X-User-Id'),
    ]));
});
