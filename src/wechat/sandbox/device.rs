//! What a user's phone does: gets codes, and gets encrypted and signed data for the back end.

use aes::Aes128;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use super::call::read_json;
use super::login::LoginCode;
use super::phone_number::{PhoneCode, PhoneNumber};
use super::users::{is_user_name, openid};
use super::{Request, Response, Sandbox, json_response, response};
use crate::identity::session_key::{SessionKey, hex};

const BLOCK: usize = 16;

const NAMES: &str = "where NAME has 1 to 64 letters, digits, \".\" and \"_\"\n";

impl Sandbox {
    /// Issues a code for a user, as `wx.login` and WeChat's SDK do.
    pub(super) async fn issue_code(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct CodeRequest {
            user: String,
        }

        match read_json(request).await {
            Ok(CodeRequest { user }) if is_user_name(&user) => {
                json_response(&json!({ "code": self.codes.issue(LoginCode::of_any_app(user)) }))
            }
            _ => bad_request(&format!("expected {{\"user\":\"NAME\"}}, {NAMES}")),
        }
    }

    /// Issues a code for a user's phone number, as the button for phone numbers does.
    pub(super) async fn issue_phone_code(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct CodeRequest {
            user: String,
            phone: Option<String>,
            app_id: Option<String>,
        }

        let subject = read_json(request).await.ok().and_then(|wanted: CodeRequest| {
            let number = match wanted.phone {
                Some(phone) => PhoneNumber::parse(&phone)?,
                None => PhoneNumber::of_user(&wanted.user),
            };
            let app_id = Some(self.app_id_or_default(wanted.app_id)?);
            let user = Some(wanted.user).filter(|user| is_user_name(user))?;
            Some(PhoneCode { app_id, user, number })
        });
        match subject {
            Some(subject) => json_response(&json!({ "code": self.phone_codes.issue(subject) })),
            None => bad_request(&format!(
                "expected {{\"user\":\"NAME\"}}, optionally with \"app_id\" and \"phone\", such as \
                 \"13800138000\" or \"+852 51234567\", {NAMES}"
            )),
        }
    }

    /// Encrypts and signs data with the user's current `session_key`, as `wx.getUserInfo` and
    /// others do.
    pub(super) async fn encrypt(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct Wanted {
            user: String,
            app_id: Option<String>,
            data: Map<String, Value>,
        }

        let Ok(Wanted { user, app_id, mut data }) = read_json(request).await else {
            return bad_request("expected {\"user\":\"NAME\",\"data\":{...}}\n");
        };
        let Some(app_id) = self.app_id_or_default(app_id) else {
            return bad_request("there is no such app\n");
        };
        let Some(key) = self.users.session_key(&app_id, &openid(&app_id, &user)) else {
            return bad_request("the user has no session_key: log the user in first\n");
        };
        let watermark = json!({ "timestamp": self.unix_seconds(), "appid": app_id });
        let raw_data = {
            let mut data = data.clone();
            data.remove("watermark");
            Value::Object(data).to_string()
        };
        // A test of another watermark sends its own.
        data.entry("watermark").or_insert(watermark);
        let (encrypted, iv) = encrypt(&key, Value::Object(data).to_string().as_bytes());
        let signature = Sha1::new_with_prefix(&raw_data).chain_update(key.expose()).finalize();
        json_response(&json!({
            "encryptedData": STANDARD.encode(encrypted),
            "iv": STANDARD.encode(iv),
            "rawData": raw_data,
            "signature": hex(&signature),
        }))
    }

    /// The app with this id, or the first one. `None`: there is no such app.
    pub(super) fn app_id_or_default(&self, app_id: Option<String>) -> Option<String> {
        let mut known = self.apps.iter().map(|(known, _)| known);
        match app_id {
            Some(app_id) => known.any(|known| *known == app_id).then_some(app_id),
            None => known.next().cloned(),
        }
    }
}

/// AES-128-CBC with PKCS#7, and the random initialization vector.
fn encrypt(key: &SessionKey, plaintext: &[u8]) -> (Vec<u8>, [u8; BLOCK]) {
    let iv: [u8; BLOCK] = rand::random();
    let cipher = cbc::Encryptor::<Aes128>::new((&*key.bytes()).into(), (&iv).into());
    let mut buffer = plaintext.to_vec();
    buffer.resize(plaintext.len() + BLOCK, 0);
    // The padding fits.
    let encrypted = cipher.encrypt_padded::<Pkcs7>(&mut buffer, plaintext.len());
    (encrypted.map(<[u8]>::to_vec).unwrap_or_default(), iv)
}

fn bad_request(help: &str) -> Response {
    response(400, "text/plain", help.to_owned())
}
