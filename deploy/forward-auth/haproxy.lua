-- Gets wxgate's decision on a request and stores it in variables: txn.wxgate_status, the
-- identity for a 200, the error and the body for a rejection. haproxy.cfg calls this with the
-- URL of wxgate. After a failure txn.wxgate_status is not set, and haproxy.cfg does not forward
-- the request.

local TIMEOUT = 5000

-- All lines of a header: wxgate must see a repeated token.
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
            -- Path and query as the client sent them.
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
            ["txn.wxgate_user_id"] = "x-user-id",
            ["txn.wxgate_jwt"] = "x-wxgate-jwt",
            ["txn.wxgate_authorization"] = "authorization",
            ["txn.wxgate_wx_openid"] = "x-wx-openid",
            ["txn.wxgate_wx_app_id"] = "x-wx-appid",
            ["txn.wxgate_wx_union_id"] = "x-wx-unionid",
            ["txn.wxgate_wx_source"] = "x-wx-source",
        }
        for variable, name in pairs(values) do
            local value = first(answer.headers, name)
            if value then txn:set_var(variable, value) end
        end
    else
        txn:set_var("txn.wxgate_error", first(answer.headers, "x-wxgate-error") or "")
        -- HAProxy would send the line break at its end as %0A.
        txn:set_var("txn.wxgate_body", ((answer.body or ""):gsub("%s+$", "")))
    end
    txn:set_var("txn.wxgate_status", tostring(answer.status))
end, 1)
