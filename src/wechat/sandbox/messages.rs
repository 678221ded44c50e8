//! Subscribe messages: subscribeMessage.send, and the messages that were sent.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::call::{Call, read_json};
use super::codes::parse_errcode;
use super::errors::Failure;
use super::{Response, Sandbox, json_response};

/// Messages that are remembered; the oldest are forgotten.
const REMEMBERED: usize = 200;

/// The longest value of each kind of field, in characters.
const LONGEST: [(&str, usize); 9] = [
    ("thing", 20),
    ("number", 32),
    ("letter", 32),
    ("symbol", 5),
    ("character_string", 32),
    ("phone_number", 17),
    ("car_number", 8),
    ("name", 20),
    ("phrase", 5),
];

/// Kinds of fields whose values have a format of their own, which is not checked.
const OTHER_KINDS: [&str; 5] = ["time", "date", "amount", "enum", "const"];

/// The messages that were sent, the newest last.
#[derive(Default)]
pub struct Messages(Mutex<VecDeque<Message>>);

/// A message as it was sent.
#[derive(Clone, Serialize)]
pub struct Message {
    app_id: String,
    touser: String,
    template_id: String,
    page: Option<String>,
    miniprogram_state: String,
    lang: String,
    data: Map<String, Value>,
    /// In seconds since 1970.
    sent_at: u64,
}

impl Messages {
    fn push(&self, message: Message) {
        let mut messages = self.0.lock();
        if messages.len() >= REMEMBERED {
            messages.pop_front();
        }
        messages.push_back(message);
    }

    pub fn all(&self) -> Vec<Message> {
        self.0.lock().iter().cloned().collect()
    }
}

impl Sandbox {
    /// subscribeMessage.send. Every user has subscribed to every template; `err-43101-ANYTHING` as
    /// a template is responded to as if the user had not.
    pub(super) async fn send_message(&self, call: Call) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Given {
            #[serde(default)]
            touser: String,
            #[serde(default)]
            template_id: String,
            page: Option<String>,
            miniprogram_state: Option<String>,
            lang: Option<String>,
            #[serde(default)]
            data: Map<String, Value>,
        }

        let Call { path, app_id, request } = call;
        let given: Given = read_json(request).await?;
        if !self.users.is_known(&app_id, &given.touser) {
            return Err(40003.into());
        }
        if given.template_id.is_empty() {
            return Err(40037.into());
        }
        if let Some(errcode) = parse_errcode(&given.template_id) {
            return Err(errcode.into());
        }
        let miniprogram_state = given.miniprogram_state.unwrap_or_else(|| "formal".to_owned());
        let lang = given.lang.unwrap_or_else(|| "zh_CN".to_owned());
        let is_valid = ["developer", "trial", "formal"].contains(&miniprogram_state.as_str())
            && ["zh_CN", "en_US", "zh_HK", "zh_TW"].contains(&lang.as_str())
            && !given.data.is_empty()
            && given.data.iter().all(|(name, field)| is_field(name, field));
        if !is_valid {
            return Err(47003.into());
        }
        self.quotas.count_for_user(path, &given.touser)?;
        self.messages.push(Message {
            app_id,
            touser: given.touser,
            template_id: given.template_id,
            page: given.page,
            miniprogram_state,
            lang,
            data: given.data,
            sent_at: self.unix_seconds(),
        });
        Ok(json_response(&json!({ "errcode": 0, "errmsg": "ok" })))
    }
}

/// Whether a field of a message is such as `"thing1": {"value": "text"}`, and not too long.
fn is_field(name: &str, field: &Value) -> bool {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let text = match field.get("value") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return false,
    };
    let longest = LONGEST.iter().find(|(known, _)| *known == kind).map(|(_, longest)| *longest);
    let fits = longest.map_or(OTHER_KINDS.contains(&kind), |most| text.chars().count() <= most);
    kind.len() < name.len() && !text.is_empty() && fits
}
