"""An old service that knows its users by cookies only, for clients that keep none."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

from gateway import Gateway, fetch, free_port, route, upstream, wait_for
from services import PEERS, nginx, php_fpm


def php_sessions(world):
    socket, port = php_fpm(world, "php"), free_port()
    folder = world.work / "nginx"
    folder.mkdir()
    (folder / "session.php").write_bytes((PEERS / "session.php").read_bytes())
    (folder / "sessions").mkdir()
    # PHP runs as another user.
    (folder / "sessions").chmod(0o777)
    process = nginx(
        world,
        "nginx",
        f"server {{ listen 127.0.0.1:{port}; location / {{ fastcgi_pass unix:{socket};"
        " fastcgi_param SCRIPT_FILENAME @FOLDER@/session.php; fastcgi_param REQUEST_METHOD $request_method;"
        " fastcgi_param REQUEST_URI $request_uri; fastcgi_param HTTP_X_OPENID $http_x_openid;"
        " fastcgi_param HTTP_COOKIE $http_cookie; }\n}\n",
    )
    wait_for(port, process, world.work / "nginx.log")
    sections = upstream("service", [port], "cookie_jar = true\n") + route("/", "service", auth="required")
    gateway = Gateway(world.wxgate, world.work / "gateway", sections)
    seen = []

    def call(token, path):
        headers = {"X-3rd-Session": token, "Cookie": "PHPSESSID=evil; own=1"}
        status, lines, body = fetch(gateway.port, path, headers=headers)
        seen.extend(lines.get_all("Set-Cookie") or [])
        assert status == 200, (status, body)
        return json.loads(body)

    tokens = {user: gateway.login(user) for user in ("alice", "bob")}
    for user, token in tokens.items():
        call(token, "/sign-in")
    with ThreadPoolExecutor(8) as pool:
        answers = [(user, pool.submit(call, token, "/page")) for _ in range(20) for user, token in tokens.items()]
        wrong = [user for user, answer in answers if answer.result()["user"] != gateway.openid(user)]
    world.promise("PHP sessions: each user has their own", not wrong, f"{len(answers) - len(wrong)} of {len(answers)}")
    counts = [call(token, "/page")["count"] for token in tokens.values()]
    world.promise("PHP sessions: one for each user", counts == [21, 21], f"requests counted: {counts}")
    sent = [sorted(call(tokens["alice"], path)["cookies"]) for path in ("/page", "/cart/1")]
    wanted = [["own", "seen"], ["cart", "own", "seen"]]
    world.promise("PHP sessions: paths decide which cookies are sent", sent == wanted, sent)
    call(tokens["alice"], "/sign-out")
    after = call(tokens["alice"], "/page")
    world.promise("PHP sessions: the service can remove its cookies", after["cookies"] == ["own"], after)
    fetch(gateway.port, "/logout", "POST", "", {"X-3rd-Session": tokens["bob"]})
    again = call(gateway.login("bob"), "/page")
    world.promise("PHP sessions: a new session has an empty jar", again["user"] is None, again)
    world.promise("PHP sessions: the client sees no cookie", not seen, f"{len(seen)} seen")
    shutil.rmtree(folder / "sessions")


SCENARIOS = [php_sessions]
