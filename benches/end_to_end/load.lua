-- What Mini Programs send, each request with another of the tokens. Arguments: the file of tokens;
-- if need be, the start of the path, and how many bytes of body to POST.
local tokens = {}
local next_token = 0

function init(arguments)
    for token in io.lines(arguments[1]) do
        tokens[#tokens + 1] = token
        -- A body is part of each request that is kept.
        if arguments[3] and #tokens == 50 then break end
    end
    local path = arguments[2] or "/api/orders/"
    wrk.method = arguments[3] and "POST" or "GET"
    wrk.body = arguments[3] and string.rep("x", tonumber(arguments[3]))
    wrk.headers["User-Agent"] = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 MicroMessenger/8.0.66 NetType/WIFI Language/zh_CN"
    wrk.headers["Referer"] = "https://servicewechat.com/wx0123456789abcdef/42/page-frame.html"
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Accept-Encoding"] = "gzip,compress,br,deflate"
    -- The requests are made before, so that wrk itself costs little.
    for i, token in ipairs(tokens) do
        wrk.headers["X-3rd-Session"] = token
        tokens[i] = wrk.format(nil, path .. i .. "?page=2")
    end
end

function request()
    next_token = next_token % #tokens + 1
    return tokens[next_token]
end
