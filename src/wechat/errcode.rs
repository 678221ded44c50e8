//! WeChat's errcodes, and what they mean to operators.

use std::fmt;

/// The number with which WeChat reports an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrCode(pub(super) i64);

impl ErrCode {
    /// The label in metrics: a known number, or `other`, so that no response can create new series.
    pub fn label(self) -> &'static str {
        self.known().map_or("other", |known| known.label)
    }

    /// What it means and what to do, for operators.
    pub fn meaning(self) -> Option<&'static str> {
        self.known().map(|known| known.meaning)
    }

    /// The number itself.
    pub fn number(self) -> i64 {
        self.0
    }

    fn known(self) -> Option<&'static KnownErrcode> {
        KNOWN.iter().find(|known| known.code == self.0)
    }
}

impl fmt::Display for ErrCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "errcode {}", self.0)
    }
}

/// A known errcode.
struct KnownErrcode {
    code: i64,
    label: &'static str,
    /// What it means and what to do, for operators.
    meaning: &'static str,
}

const fn known(code: i64, label: &'static str, meaning: &'static str) -> KnownErrcode {
    KnownErrcode { code, label, meaning }
}

/// The errcodes of code2Session's page, and those seen in practice.
const KNOWN: [KnownErrcode; 21] = [
    known(-1, "-1", "WeChat is overloaded: try again later"),
    known(40001, "40001", "the AppSecret is wrong: copy it from mp.weixin.qq.com"),
    known(
        40013,
        "40013",
        "the app id is wrong: copy that of the Mini Program from mp.weixin.qq.com, without quotes",
    ),
    known(
        40029,
        "40029",
        "the code belongs to another app id, was used before, is older than five minutes, or is \
         not from wx.login",
    ),
    known(
        40125,
        "40125",
        "the AppSecret is wrong or was reset: copy the current one from mp.weixin.qq.com",
    ),
    known(40163, "40163", "the code was used before, here or by another server"),
    known(
        40164,
        "40164",
        "the address that the call came from is not on the app's IP allow list: add it at \
         mp.weixin.qq.com, or call WeChat through a proxy whose address is on it",
    ),
    known(40226, "40226", "WeChat blocks this user as a high risk; the gateway cannot change that"),
    known(40243, "40243", "the AppSecret is frozen: unfreeze it at mp.weixin.qq.com"),
    known(41002, "41002", "the app id did not arrive: a relay or proxy drops the query"),
    known(41004, "41004", "the AppSecret did not arrive: a relay or proxy drops the query"),
    known(41008, "41008", "the code did not arrive: a relay or proxy drops the query"),
    known(
        45009,
        "45009",
        "the app's quota of calls is used up for today: WeChat is called once a minute until \
         there is some again; the quota can be reset or raised at mp.weixin.qq.com",
    ),
    known(45011, "45011", "too many calls for one user within a minute"),
    known(
        48001,
        "48001",
        "the app may not use this API: check at mp.weixin.qq.com that it is a Mini Program and \
         that its permissions were not withdrawn",
    ),
    known(
        50002,
        "50002",
        "WeChat has restricted the app, possibly for a violation of its rules: see the notices at \
         mp.weixin.qq.com",
    ),
    known(50007, "50007", "the app's account is frozen: see the notices at mp.weixin.qq.com"),
    known(
        61024,
        "61024",
        "a third-party platform manages this app: its codes are exchanged by that platform, not \
         with an AppSecret",
    ),
    known(
        89503,
        "89503",
        "an administrator of the app must confirm calls from this address: WeChat has sent a \
         message to confirm",
    ),
    known(
        89506,
        "89506",
        "an administrator of the app has refused calls from this address: wait 24 hours and ask \
         for confirmation",
    ),
    known(
        89507,
        "89507",
        "an administrator of the app has refused calls from this address: wait an hour and ask \
         for confirmation",
    ),
];
