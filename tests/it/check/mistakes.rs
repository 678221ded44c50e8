//! Values that look like mistakes, and the syntax of other programs.

use super::{Folder, smallest};

#[test]
fn values_that_work_but_look_like_mistakes_are_warned_of() {
    let folder = Folder::new();
    for (changes, expected) in [
        (
            "server.trusted_proxies = [\"0.0.0.0/0\"]",
            "server.trusted_proxies: this trusts every address",
        ),
        ("server.trusted_proxies = [\"10.0.0.0/8\", \"::/0\"]", "all clients can forge"),
        ("server.trusted_proxies = [\"0.0.0.0/1\", \"128.0.0.0/1\"]", "all clients can forge"),
        ("wechat.base_url = \"http://localhost:1\"", "wechat.base_url: this is not WeChat"),
        ("wechat.base_url = \"http://[::1]:1\"", "wechat.base_url: this is not WeChat"),
        (
            "wechat.base_url = \"https://api.weixin.qq.com\"\nwechat.fallback_base_url = \"http://127.0.0.1:1\"",
            "wechat.fallback_base_url: this is not WeChat",
        ),
        (
            "wechat.base_url = \"https://mp.weixin.qq.com\"",
            "mp.weixin.qq.com is not the host of WeChat's API",
        ),
        (
            "wechat.base_url = \"https://api.weixin.qq.com/cgi-bin\"",
            "WeChat's API has no path prefix: leave out the path",
        ),
        (
            "[[upstream]]\nname = \"recorder\"\nservers = [\"h:1\"]\n[[upstream]]\nname = \"old\"\nservers = [\"h:2\"]",
            "upstream[1].name: no route uses \"old\"",
        ),
        ("session.capacity = 100_000_000", "session.capacity: sessions may use 50 GB of memory"),
        ("limits.max_rate_clients = 1_000_000_000", "each rate limit may use 400 GB of memory"),
        (
            "session.max_per_user = 0",
            "session.max_per_user: there is no limit: one user can use all",
        ),
        ("session.ttl = \"3650d\"", "session.ttl: a stolen token"),
        ("session.ttl = \"30s\"", "session.ttl: every user must log in"),
        ("session.idle_timeout = \"1ms\"", "session.idle_timeout: users must log in again"),
        (
            "endpoints.login = \"/api/login/\"",
            "endpoints.login: requests for \"/api/login\", without the \"/\", do not match",
        ),
        (
            "[[route]]\npath = \"/api/orders$\"\nupstream = \"recorder\"",
            "regular expressions are not supported",
        ),
        (
            "[[route]]\npath = \"/users/:id\"\nupstream = \"recorder\"",
            "path parameters are not supported",
        ),
    ] {
        folder.check(changes).warns(expected);
    }
    let apps = "[[app]]\napp_id = \"wx0123456789abcdef\"\napp_secret = { file = \"{dir}/wechat-secret\" }\ndefault = true\n\
                [[app]]\napp_id = \"wx1123456789abcdef\"\napp_secret = { file = \"{dir}/wechat-secret\" }\n\
                [[route]]\npath = \"/\"\nupstream = \"recorder\"\napps = [\"wx0123456789abcdef\"]\n\
                [[route]]\npath = \"/x\"\nupstream = \"recorder\"\nauth = \"none\"";
    let outcome = folder.check(apps);
    outcome.warns(":12: app[1].app_id: no route accepts the sessions of this app");
    assert!(!outcome.err.contains("app[0]"), "{}", outcome.err);
    // In an included file too, which is named.
    folder.write("old.toml", "[[upstream]]\nname = \"old\"\nservers = [\"h:2\"]");
    let outcome = folder.check("include = [\"old.toml\"]");
    outcome.warns(&format!("{}:2: upstream[0].name: no route", folder.path("old.toml").display()));
}

#[test]
fn syntax_of_other_programs_is_rejected_with_the_reason() {
    let folder = Folder::new();
    let of_server = |server: &str| {
        folder.check(&format!("[[upstream]]\nname = \"recorder\"\nservers = [\"{server}\"]"))
    };
    for (server, expected) in [
        ("http://127.0.0.1:3000", "leave out http://\n"),
        ("http://127.0.0.1:3000/", "leave out http://\n"),
        ("http://127.0.0.1:3000/api", "leave out http:// and the path"),
        ("https://shop.internal:443/api", "leave out https://, and add [upstream.tls]"),
        ("grpc://shop.internal:50051", "leave out grpc://, and set protocol = \"h2\""),
        ("tcp://127.0.0.1:3000", "leave out tcp://\n"),
        ("/run/shop.sock", "a unix socket is written \"unix:/run/shop.sock\""),
        ("unix:run/shop.sock", "is not the absolute path of a socket"),
        ("unix:///run/shop.sock", "is not the absolute path of a socket"),
        ("shop:3000/api", "leave out the path"),
        ("shop：3000", "'：' is not ASCII: write :"),
    ] {
        of_server(server).rejects(expected);
    }
    for path in [
        "^/api/.*$",
        "/api/.*",
        "~ ^/api",
        "^/api",
        "(/a|/b)",
        "/a(?:b)",
        "/a/(b|c)",
        "/a/[0-9]+",
        r"/a/\d+",
    ] {
        let route = format!("[[route]]\npath = '{path}'\nupstream = \"recorder\"");
        folder.check(&route).rejects("looks like a regular expression: paths are prefixes");
    }
    let route = "[[route]]\npath = \"/users/{id}\"\nupstream = \"recorder\"";
    folder.check(route).rejects("contains '{': path parameters are not supported");
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\ncors = true";
    folder.check(route).rejects("write [route.cors]");
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nread = \"5s\"";
    folder.check(route).rejects("did you mean \"read_timeout\"?");

    let good = smallest();
    assert_eq!(folder.check_text(&good).code, 0);
    assert_eq!(folder.check_text(format!("\u{feff}{good}")).code, 0);
    for (from, to, expected) in [
        ("listen = \"0.0.0.0:8080\"", "listen = “0.0.0.0:8080”", "'“' is not ASCII: write \""),
        ("listen = \"0.0.0.0:8080\"", "listen = \"0.0.0.0:8080”", "'”' is not ASCII: write \""),
        ("listen = \"", "listen ＝ \"", "'＝' is not ASCII: write ="),
        ("listen = \"", "listen\u{a0}= \"", "U+00A0 is not an ASCII space: write ' '"),
        ("listen = \"", "listen\u{200b} = \"", "U+200B is an invisible character: delete it"),
        ("[server]", "【server】", "'【' is not ASCII: write ["),
        ("0.0.0.0:8080\"", "0.0.0.0：8080\"", "'：' is not ASCII: write :"),
        (
            "listen = \"0.0.0.0:8080\"",
            "listen = [\"0.0.0.0:8080\"，\"0.0.0.0:8082\"]",
            "'，' is not ASCII: write ,",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        folder.check_text(good.replacen(from, to, 1)).rejects(expected);
    }
    for (text, expected) in [
        ("server:\n  listen: 0.0.0.0:8080\napp:\n  - app_id: wx1\n", "this is YAML"),
        ("---\n# x\nserver:\n  listen: 1\n", "this is YAML"),
        ("{\n  \"server\": { \"listen\": \"0.0.0.0:8080\" }\n}\n", "this is JSON"),
    ] {
        let outcome = folder.check_text(text);
        outcome.rejects(expected);
        assert_eq!(outcome.err.matches("gateway.toml:").count(), 1, "{}", outcome.err);
    }
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for text in [[&[0xff, 0xfe], &*utf16].concat(), utf16] {
        folder.check_text(text).rejects("cannot read the file: is UTF-16: save it as UTF-8");
    }
}
