//! Phone numbers: getPhoneNumber.

use serde::Deserialize;
use serde_json::json;

use super::call::{Call, read_json};
use super::codes::{CodeEffect, Kind};
use super::errors::Failure;
use super::users::{openid, phone_number};
use super::{Response, Sandbox, json_response};

/// The codes of the button for phone numbers. WeChat's sample has 64 characters.
pub const PHONE_CODES: Kind<PhoneCode> =
    Kind { length: 64, words: &[("phone", PhoneCode::of_any_app)], reused: 40029 };

/// The meaning of a code.
#[derive(Clone)]
pub struct PhoneCode {
    /// `None`: the app that uses the code.
    pub app_id: Option<String>,
    pub user: String,
    pub number: PhoneNumber,
}

/// A phone number.
#[derive(Clone)]
pub struct PhoneNumber {
    /// Without the country code.
    pub digits: String,
    pub country_code: String,
}

impl PhoneCode {
    fn of_any_app(user: String) -> Self {
        let number = PhoneNumber::of_user(&user);
        Self { app_id: None, user, number }
    }
}

impl PhoneNumber {
    /// The number that a user has if no other is given.
    pub fn of_user(user: &str) -> Self {
        Self { digits: phone_number(user), country_code: "86".to_owned() }
    }

    /// A number such as `13800138000` or `+852 51234567`.
    pub fn parse(text: &str) -> Option<Self> {
        let (country_code, digits) = match text.strip_prefix('+') {
            Some(rest) => rest.split_once(' ')?,
            None => ("86", text),
        };
        let is_number = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
        };
        (is_number(country_code, 3) && is_number(digits, 15))
            .then(|| Self { digits: digits.to_owned(), country_code: country_code.to_owned() })
    }

    /// With the country code, if it is foreign.
    fn whole(&self) -> String {
        match self.country_code.as_str() {
            "86" => self.digits.clone(),
            foreign => format!("+{foreign}{}", self.digits),
        }
    }
}

impl Sandbox {
    /// phonenumber.getPhoneNumber.
    pub(super) async fn phone_number(&self, call: Call) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Wanted {
            #[serde(default)]
            code: String,
            #[serde(default)]
            openid: String,
        }

        let Call { path, app_id, request } = call;
        let wanted: Wanted = read_json(request).await?;
        let (phone, delay) = match self.phone_codes.effect(&wanted.code) {
            CodeEffect::Accept { subject, delay } => (subject, delay),
            CodeEffect::Error { errcode } => return Err(errcode.into()),
            CodeEffect::Fault(fault) => return Ok(fault.respond().await?),
        };
        if phone.app_id.is_some_and(|of| of != app_id) {
            return Err(40013.into());
        }
        let openid = openid(&app_id, &phone.user);
        // WeChat does not document the errcode, nor whether the code is used then. Here it is not:
        // nobody can use up the code of another user.
        if !wanted.openid.is_empty() && wanted.openid != openid {
            return Err(40003.into());
        }
        self.quotas.count_for_user(path, &openid)?;
        if !self.phone_codes.spend(&wanted.code) {
            return Err(PHONE_CODES.reused.into());
        }
        tokio::time::sleep(delay).await;
        Ok(json_response(&json!({
            "errcode": 0,
            "errmsg": "ok",
            "phone_info": {
                "phoneNumber": phone.number.whole(),
                "purePhoneNumber": phone.number.digits,
                "countryCode": phone.number.country_code,
                "watermark": { "timestamp": self.unix_seconds(), "appid": app_id },
            },
        })))
    }
}
