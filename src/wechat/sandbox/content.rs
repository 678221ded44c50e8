//! Checks of content: msgSecCheck and imgSecCheck.
//!
//! The text itself, or the name of the file, says what the result is: `sandbox-risky` is risky, and
//! `sandbox-review` has to be reviewed by people. Everything else passes.

use serde::Deserialize;
use serde_json::json;

use super::call::{Call, read_json};
use super::errors::Failure;
use super::{Response, Sandbox, json_response, multipart, text_of_letters};

const RISKY: &str = "sandbox-risky";

const REVIEW: &str = "sandbox-review";

/// Longest text, in characters.
const LONGEST_TEXT: usize = 2500;

/// Largest image, in bytes.
const LARGEST_IMAGE: usize = 1 << 20;

impl Sandbox {
    /// security.msgSecCheck, of version 2 (for a user) or 1.
    pub(super) async fn check_text(&self, call: Call) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Given {
            #[serde(default)]
            content: String,
            version: Option<u32>,
            scene: Option<u32>,
            #[serde(default)]
            openid: String,
        }

        let Call { path, app_id, request } = call;
        let given: Given = read_json(request).await?;
        if given.content.is_empty() {
            return Err(44002.into());
        }
        if given.content.chars().count() > LONGEST_TEXT {
            return Err(45002.into());
        }
        let is_risky = given.content.contains(RISKY);
        match given.version {
            None | Some(1) if is_risky => return Err(87014.into()),
            None | Some(1) => return Ok(json_response(&json!({ "errcode": 0, "errmsg": "ok" }))),
            Some(2) if given.scene.is_some_and(|scene| (1..=4).contains(&scene)) => {}
            Some(_) => return Err(40097.into()),
        }
        if given.openid.is_empty() {
            return Err(40003.into());
        }
        // WeChat knows only users that used the app within two hours. Here, that have logged in.
        if !self.users.is_known(&app_id, &given.openid) {
            return Err(61010.into());
        }
        self.quotas.count_for_user(path, &given.openid)?;
        let (suggest, label) = if is_risky {
            ("risky", 20002)
        } else if given.content.contains(REVIEW) {
            ("review", 21000)
        } else {
            ("pass", 100)
        };
        Ok(json_response(&json!({
            "errcode": 0,
            "errmsg": "ok",
            "detail": [{
                "strategy": "content_model",
                "errcode": 0,
                "suggest": suggest,
                "label": label,
                "prob": 90,
            }],
            "trace_id": text_of_letters(24),
            "result": { "suggest": suggest, "label": label },
        })))
    }

    /// security.imgSecCheck.
    pub(super) async fn check_image(&self, call: Call) -> Result<Response, Failure> {
        let file = multipart::read_image(call.request, LARGEST_IMAGE).await?;
        if file.name.contains(RISKY) {
            return Err(87014.into());
        }
        Ok(json_response(&json!({ "errcode": 0, "errmsg": "ok" })))
    }
}
