//! WeChat's errcodes, and what they mean to operators.

use std::fmt;

/// The number with which WeChat reports an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrCode(pub(super) i64);

impl ErrCode {
    /// The label in metrics: a known number, or `other`, so that no response can create new series.
    pub fn label(self) -> &'static str {
        self.info().map_or("other", |info| info.label)
    }

    /// What it means and what to do, for operators.
    pub fn meaning(self) -> Option<&'static str> {
        self.info().map(|info| info.meaning)
    }

    /// The number itself.
    pub fn number(self) -> i64 {
        self.0
    }

    fn info(self) -> Option<&'static ErrCodeInfo> {
        ERRCODES.iter().find(|info| info.code == self.0)
    }
}

impl fmt::Display for ErrCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "errcode {}", self.0)
    }
}

/// What is known about an errcode.
struct ErrCodeInfo {
    code: i64,
    label: &'static str,
    /// What it means and what to do, for operators.
    meaning: &'static str,
}

const fn info(code: i64, label: &'static str, meaning: &'static str) -> ErrCodeInfo {
    ErrCodeInfo { code, label, meaning }
}

/// The errcodes of the pages of exchanges and of calls with an access token, and those seen in
/// practice.
const ERRCODES: [ErrCodeInfo; 34] = [
    info(-1, "-1", "WeChat is overloaded: try again later"),
    info(
        40001,
        "40001",
        "the AppSecret is wrong: copy it from mp.weixin.qq.com; in a call with an access_token: \
         another program has replaced the token",
    ),
    info(40003, "40003", "the openid is not that of a user of this app"),
    info(
        40013,
        "40013",
        "the app id is wrong: copy it from WeChat's console (mp.weixin.qq.com, of websites and \
         native apps open.weixin.qq.com), without quotes",
    ),
    info(40014, "40014", "the access_token is not valid"),
    info(
        40029,
        "40029",
        "the code belongs to another app id, was used before, has expired, or is not from \
         wx.login, WeChat's login page or its SDK",
    ),
    info(40037, "40037", "the template id is wrong"),
    info(40097, "40097", "a parameter is wrong"),
    info(
        40125,
        "40125",
        "the AppSecret is wrong or was reset: copy the current one from mp.weixin.qq.com",
    ),
    info(40163, "40163", "the code was used before, here or by another server"),
    info(
        40164,
        "40164",
        "the gateway's address is not on the app's IP allow list: add it at mp.weixin.qq.com, or \
         call WeChat through a proxy whose address is on the list",
    ),
    info(40226, "40226", "WeChat blocks this user as high-risk; the gateway cannot change that"),
    info(40243, "40243", "the AppSecret is frozen: unfreeze it at mp.weixin.qq.com"),
    info(41002, "41002", "WeChat received no app id: a relay or proxy drops the query"),
    info(41004, "41004", "WeChat received no AppSecret: a relay or proxy drops the query"),
    info(41008, "41008", "WeChat received no code: a relay or proxy drops the query"),
    info(41030, "41030", "the page does not exist in the released Mini Program"),
    info(42001, "42001", "the access_token has expired"),
    info(42003, "42003", "the code of a redirect login or of a native app has expired"),
    info(43101, "43101", "the user has not allowed this message"),
    info(
        45009,
        "45009",
        "the app has used up its quota of calls for today: reset or raise the quota at \
         mp.weixin.qq.com; until then WeChat is called once a minute",
    ),
    info(45011, "45011", "too many calls for one user in a minute"),
    info(47001, "47001", "the body is not the JSON that WeChat expects"),
    info(47003, "47003", "a value of a template does not have the form that WeChat expects"),
    info(
        48001,
        "48001",
        "the app has no permission for this API: check at mp.weixin.qq.com that it is a Mini \
         Program and has its permissions",
    ),
    info(
        50002,
        "50002",
        "WeChat has restricted the app, possibly for a violation of its rules: see the notices at \
         mp.weixin.qq.com",
    ),
    info(50007, "50007", "the app's account is frozen: see the notices at mp.weixin.qq.com"),
    info(
        61024,
        "61024",
        "a third-party platform manages this app: its codes are exchanged by that platform, not \
         with an AppSecret",
    ),
    info(87007, "87007", "WeChat has no session_key of this user any more"),
    info(87009, "87009", "the session_key is not the user's current one"),
    info(87014, "87014", "WeChat finds the content illegal"),
    info(
        89503,
        "89503",
        "an administrator of the app must confirm calls from this address: WeChat has sent a \
         message to confirm",
    ),
    info(
        89506,
        "89506",
        "an administrator of the app has rejected calls from this address: wait 24 hours, then \
         request confirmation again",
    ),
    info(
        89507,
        "89507",
        "an administrator of the app has rejected calls from this address: wait an hour, then \
         request confirmation again",
    ),
];
