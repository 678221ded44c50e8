-- Asks wxgate what is to become of a request, and leaves the answer in variables:
-- txn.wxgate_status, and of a 200 whose request it is, of a refusal its error and body.
-- haproxy.cfg calls it with the address to ask. Whatever fails here sets no status, and
-- without one haproxy.cfg forwards nothing.

local TIMEOUT = 5000

-- Every line of a header, so that two tokens are seen as two.
local function lines(headers, name)
    local found = {}
    local index = 0
    while headers[name] and headers[name][index] do
        found[#found + 1] = headers[name][index]
        index = index + 1
    end
    return #found > 0 and found or nil
end

local function first(headers, name)
    local value = headers[name] and headers[name][0]
    return value ~= "" and value or nil
end

core.register_action("wxgate", { "http-req" }, function(txn, url)
    local headers = txn.http:req_get_headers()
    local answer = core.httpclient():get {
        url = url,
        timeout = TIMEOUT,
        headers = {
            ["x-forwarded-method"] = { txn.f:method() },
            -- The path as the client sent it, and the query.
            ["x-forwarded-uri"] = { txn.f:pathq() },
            ["x-forwarded-host"] = lines(headers, "host"),
            ["x-forwarded-proto"] = lines(headers, "x-forwarded-proto"),
            ["x-forwarded-for"] = lines(headers, "x-forwarded-for"),
            ["x-request-id"] = lines(headers, "x-request-id"),
            ["x-3rd-session"] = lines(headers, "x-3rd-session"),
            ["authorization"] = lines(headers, "authorization"),
        },
    }
    if not answer or not answer.status then return end
    if answer.status == 200 then
        local values = {
            ["txn.wxgate_openid"] = "x-openid",
            ["txn.wxgate_app_id"] = "x-appid",
            ["txn.wxgate_union_id"] = "x-unionid",
        }
        for variable, name in pairs(values) do
            local value = first(answer.headers, name)
            if value then txn:set_var(variable, value) end
        end
    else
        txn:set_var("txn.wxgate_error", first(answer.headers, "x-wxgate-error") or "")
        -- HAProxy would write its line end as %0A.
        txn:set_var("txn.wxgate_body", ((answer.body or ""):gsub("%s+$", "")))
    end
    txn:set_var("txn.wxgate_status", tostring(answer.status))
end, 1)
