//! The bodies of requests and responses.
//!
//! The `OpenAPI` description is generated from these types. Unknown fields are rejected: a
//! misspelled `max_age` must not be ignored.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::identity::secret::Secret;

/// Encrypted data, as the phone got it from WeChat.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecryptRequest {
    /// The app; the default app if it is missing.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "wx0123456789abcdef")]
    pub app_id: Option<String>,
    /// The user, from the header `X-OpenId` of the request that the gateway forwarded.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "oABCD1234567890abcdefghijklm")]
    pub openid: String,
    /// `encryptedData`, in base64.
    #[schema(example = "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZMQmRzooG2xrA=")]
    pub encrypted_data: String,
    /// The initialization vector: 16 bytes in base64.
    #[schema(example = "r7BXXKkLb8qrSNn05n0qiA==")]
    pub iv: String,
    /// How old the data may be, in seconds; any age if it is missing.
    #[schema(minimum = 0, maximum = 4_294_967_295_i64, example = 300)]
    pub max_age: Option<u32>,
}

/// Signed data, as the phone got it from WeChat.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The app; the default app if it is missing.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "wx0123456789abcdef")]
    pub app_id: Option<String>,
    /// The user, from the header `X-OpenId` of the request that the gateway forwarded.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "oABCD1234567890abcdefghijklm")]
    pub openid: String,
    /// `rawData`, byte for byte.
    #[schema(example = "{\"nickName\":\"Band\"}")]
    pub raw_data: String,
    /// `signature`: 40 hexadecimal digits.
    #[schema(example = "75e81ceda165f4ffa64f4068af58c64b8f54b88c")]
    pub signature: String,
}

/// A user.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    /// The app; the default app if it is missing.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "wx0123456789abcdef")]
    pub app_id: Option<String>,
    /// The user, from the header `X-OpenId` of the request that the gateway forwarded.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "oABCD1234567890abcdefghijklm")]
    pub openid: String,
}

/// A code of the phone number button.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PhoneNumberRequest {
    /// The app; the default app if it is missing.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "wx0123456789abcdef")]
    pub app_id: Option<String>,
    /// The user, from the header `X-OpenId` of the request that the gateway forwarded.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "oABCD1234567890abcdefghijklm")]
    pub openid: String,
    /// `e.detail.code` of `getPhoneNumber`; not the code of `wx.login`.
    #[schema(value_type = String, pattern = "^[!-~]{1,512}$",
        example = "e31968a7f94cc5ee25fafc2aef2773f0bb8c3937b22520eb8ee345274d00c144")]
    pub code: Secret,
}

/// An access token that WeChat has rejected.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The app; the default app if it is missing.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,128}$", example = "wx0123456789abcdef")]
    pub app_id: Option<String>,
    /// The access token that WeChat has rejected.
    #[schema(value_type = String, min_length = 1, max_length = 2048, example = "71_abcdef")]
    pub access_token: Secret,
}

/// Decrypted data.
#[derive(Serialize, ToSchema)]
pub struct DecryptResponse {
    /// The plaintext's JSON, byte for byte. It is not authenticated.
    #[schema(value_type = Object)]
    pub data: (),
}

/// Whether something is valid.
#[derive(Serialize, ToSchema)]
pub struct ValidResponse {
    pub valid: bool,
}

/// A phone number.
#[derive(Clone, Serialize, ToSchema)]
pub struct PhoneNumberResponse {
    /// With the country code if the number is foreign.
    #[schema(value_type = String, example = "13800138000")]
    pub phone_number: Zeroizing<String>,
    /// Without the country code.
    #[schema(value_type = String, example = "13800138000")]
    pub pure_phone_number: Zeroizing<String>,
    #[schema(example = "86")]
    pub country_code: String,
}

/// An access token.
#[derive(Serialize, ToSchema)]
pub struct AccessTokenResponse {
    #[schema(value_type = String, example = "71_abcdef")]
    pub access_token: Zeroizing<String>,
    /// In seconds.
    #[schema(example = 7200)]
    pub expires_in: u64,
}

/// What every error looks like.
#[derive(Serialize, ToSchema)]
pub struct ErrorResponse {
    /// The kind of the error, for programs.
    pub error: String,
    /// For people.
    pub message: String,
    /// What can be done: `login` (the phone calls `wx.login`), `retry` (later, see `Retry-After`)
    /// or `none`.
    pub action: String,
    /// As in the header `X-Request-Id` and in the logs.
    pub request_id: String,
}

/// What is wrong with the fields of a body that is JSON. Names the API's own fields, but repeats
/// nothing of the body.
pub fn field_fault(error: &serde_json::Error) -> Cow<'static, str> {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    if let Some(name) = text.strip_prefix("missing field ") {
        format!("the body has no field {name}").into()
    } else if let Some(name) = text.strip_prefix("duplicate field ") {
        format!("the body has the field {name} twice").into()
    } else if let Some((_, fields)) =
        text.strip_prefix("unknown field ").and_then(|rest| rest.rsplit_once("expected "))
    {
        format!("the body has an unknown field: expected {fields}").into()
    } else {
        let (line, column) = (error.line(), error.column());
        format!("a value in the body is of a wrong type: it ends at line {line}, column {column}")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: &str) -> String {
        let Err(error) = serde_json::from_str::<VerifyRequest>(body) else { return String::new() };
        field_fault(&error).into_owned()
    }

    #[test]
    fn a_wrong_field_is_named_without_repeating_the_body() {
        let most = "\"openid\":\"o\",\"raw_data\":\"\"";
        for (body, expected) in [
            (format!("{{{most}}}"), "the body has no field `signature`"),
            (format!("{{{most},\"openid\":\"p\"}}"), "the body has the field `openid` twice"),
            (
                format!("{{{most},\"` expected `secret`, at line 9\":1}}"),
                "the body has an unknown field: expected one of `app_id`, `openid`, `raw_data`, \
                 `signature`",
            ),
            (
                format!("{{{most},\"signature\":7}}"),
                "a value in the body is of a wrong type: it ends at line 1, column 41",
            ),
        ] {
            assert_eq!(fault(&body), expected, "{body}");
        }
    }
}
