use std::time::Duration;

use serde_json::{Value, json};

use super::{WeChat, assert_errcode, text};
use crate::harness::client::{self, Response};
use crate::harness::{OTHER_APP, openid};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nimage";

/// A form with one file.
fn form(part: &str, file: &str, content: &[u8]) -> Vec<u8> {
    let before = format!(
        "--b\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nx\r\n\
         --b\r\nContent-Disposition: form-data; name=\"{part}\"; filename=\"{file}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    [before.as_bytes(), content, b"\r\n--b--\r\n"].concat()
}

async fn upload(wechat: &WeChat, path: &str, body: &[u8]) -> Response {
    let headers = "Content-Type: multipart/form-data; boundary=b\r\n";
    wechat.send("POST", path, headers, body).await
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_uploaded() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let path = format!("/cgi-bin/media/upload?type=image&access_token={token}");
    let large = [b"\xff\xd8\xff".as_slice(), &vec![7; (10 << 20) - 3]].concat();
    for (content, extension, content_type) in
        [(PNG, "png", "image/png"), (&large, "jpg", "image/jpeg"), (b"GIF89a", "gif", "image/gif")]
    {
        let uploaded = upload(&wechat, &path, &form("media", "a", content)).await.json();
        assert_eq!(uploaded["type"], "image", "{uploaded}");
        assert!(uploaded["created_at"].is_u64());
        let id = text(&uploaded["media_id"]);
        let get = format!("/cgi-bin/media/get?access_token={token}&media_id={id}");
        let file = client::get(wechat.address, &get).await;
        assert!(file.body == content);
        assert_eq!(file.header("content-type"), Some(content_type));
        let disposition = format!("attachment; filename=\"{id}.{extension}\"");
        assert_eq!(file.header("content-disposition"), Some(disposition.as_str()));

        let other = wechat.token_of(OTHER_APP).await;
        let other = format!("/cgi-bin/media/get?access_token={other}&media_id={id}");
        assert_errcode(&wechat.get(&other).await, 40007);
    }
    let unknown = format!("/cgi-bin/media/get?access_token={token}&media_id=x");
    assert_errcode(&wechat.get(&unknown).await, 40007);
}

#[tokio::test]
async fn a_file_is_kept_for_three_days() {
    let wechat = WeChat::start().await;
    let path = format!("/cgi-bin/media/upload?type=image&access_token={}", wechat.token().await);
    let uploaded = upload(&wechat, &path, &form("media", "a.png", PNG)).await.json();
    let id = text(&uploaded["media_id"]);
    let get = async || {
        let token = wechat.token().await;
        let path = format!("/cgi-bin/media/get?access_token={token}&media_id={id}");
        client::get(wechat.address, &path).await
    };
    wechat.clock.advance(Duration::from_secs(3 * 24 * 3600 - 1));
    assert_eq!(get().await.body, PNG);
    wechat.clock.advance(Duration::from_secs(1));
    assert_errcode(&get().await.json(), 40007);
}

#[tokio::test]
async fn an_upload_that_is_no_image_is_rejected() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let media = format!("/cgi-bin/media/upload?type=image&access_token={token}");
    let check = format!("/wxa/img_sec_check?access_token={token}");
    let too_large = [PNG, &vec![7; 1 << 20]].concat();
    // Longer than what is read at all, and by so little that nothing is left unread.
    let far_too_large = [PNG, &vec![7; (10 << 20) + (16 << 10)]].concat();
    for (path, body, errcode) in [
        (&media, form("file", "a.png", PNG), 41005),
        (&media, form("media", "a.png", b""), 40006),
        (&media, form("media", "a.png", b"text"), 40004),
        (&media, b"--b\r\n".to_vec(), 41005),
        (&media, form("media", "a.png", &far_too_large), 40006),
        (&check, form("media", "a.png", &too_large), 40006),
        (&check, form("media", "sandbox-risky.png", PNG), 87014),
        (&check, form("media", "a.png", PNG), 0),
    ] {
        let answer = upload(&wechat, path, &body).await.json();
        assert_eq!(answer["errcode"], errcode, "{path}");
    }
    let body = form("media", "a.png", PNG);
    assert_errcode(&wechat.send("POST", &media, "", &body).await.json(), 41005);
    let video = format!("/cgi-bin/media/upload?type=video&access_token={token}");
    assert_errcode(&upload(&wechat, &video, &body).await.json(), 40004);
}

#[tokio::test]
async fn a_text_says_itself_how_it_is_judged() {
    let wechat = WeChat::start().await;
    wechat.login("alice").await;
    let check = async |body: Value| {
        let token = wechat.token().await;
        wechat.post(&format!("/wxa/msg_sec_check?access_token={token}"), &body).await
    };
    for (content, suggest) in
        [("hello", "pass"), ("a sandbox-risky text", "risky"), ("sandbox-review", "review")]
    {
        let body =
            json!({ "content": content, "version": 2, "scene": 2, "openid": openid("alice") });
        let judged = check(body).await;
        assert_errcode(&judged, 0);
        assert_eq!(judged["result"]["suggest"], suggest);
        assert!(judged["trace_id"].is_string());
    }
    let openid = openid("alice");
    for (body, errcode) in [
        (json!({ "content": "x" }), 0),
        (json!({ "content": "sandbox-risky" }), 87014),
        (json!({}), 44002),
        (json!({ "content": "x".repeat(2501) }), 45002),
        (json!({ "content": "x", "version": 2, "openid": openid }), 40097),
        (json!({ "content": "x", "version": 2, "scene": 5, "openid": openid }), 40097),
        (json!({ "content": "x", "version": 2, "scene": 1 }), 40003),
        (json!({ "content": "x", "version": 2, "scene": 1, "openid": "x" }), 61010),
    ] {
        assert_errcode(&check(body).await, errcode);
    }
}
