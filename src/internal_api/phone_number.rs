//! The phone number for a code of the button.

use std::sync::Arc;

use super::Context;
use super::error::{ApiError, Call, Failure};
use super::messages::PhoneNumberResponse;
use super::phone_codes::Sent;
use crate::identity::User;
use crate::identity::secret::Secret;
use crate::message::own_response::OwnResponse;
use crate::wechat::server_api::{Phone, PhoneNumber};

/// Longest code, in bytes; WeChat's have 64.
const LONGEST_CODE: usize = 512;

/// Gets the phone number for a code. The code is sent once.
pub async fn get(context: &Arc<Context>, user: User, code: Secret) -> Result<OwnResponse, Failure> {
    let text = code.expose();
    let is_code =
        (1..=LONGEST_CODE).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_code {
        return Err(ApiError::bad_request("code is not a code of getPhoneNumber").into());
    }
    let (sender, of) = (context.clone(), user.clone());
    let copy = code.clone();
    let send = || async move { send(&sender, &of, &copy).await };
    let number = context.codes.send_once(user, &code, send).await?;
    Ok(OwnResponse::json(200, &number))
}

async fn send(context: &Context, user: &User, code: &Secret) -> Sent {
    let internal = &context.internal;
    let tokens = &internal.access_tokens;
    match internal.wechat.phone_number(tokens, &user.app_id, &user.openid, code).await {
        Ok(Phone::Number(PhoneNumber { phone_number, pure_phone_number, country_code })) => {
            let number = PhoneNumberResponse { phone_number, pure_phone_number, country_code };
            Sent { outcome: Ok(number), is_spent: true }
        }
        Ok(Phone::InvalidCode) => {
            Sent { outcome: Err(ApiError::InvalidPhoneCode.into()), is_spent: true }
        }
        Err(error) => {
            let is_spent = error.may_have_effect();
            let call = if is_spent { Call::Once } else { Call::Repeatable };
            let mut failure = context.failed(&user.app_id, error.error(), call);
            if is_spent {
                // The same code is not sent again.
                match &mut failure.error {
                    ApiError::RateLimited { retry_after }
                    | ApiError::WeChatBusy { retry_after } => {
                        *retry_after = None;
                    }
                    _ => {}
                }
            }
            Sent { outcome: Err(failure), is_spent }
        }
    }
}
