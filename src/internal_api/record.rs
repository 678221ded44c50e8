//! The access log line of a call, written exactly once: when its response has been sent, or when
//! the caller has disconnected.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use hyper::body::{Body, Frame, SizeHint};

use super::body::{Meter, ResponseBody};
use crate::identity::{AppId, OpenId};
use crate::policy::Process;
use crate::telemetry::access_log::{AccessLine, CLIENT_CLOSED_REQUEST};
use crate::wechat::pass_through::upload::BodyError;

/// The app and the user of a call, as far as they are known.
#[derive(Default)]
pub struct Facts {
    pub app_id: Option<AppId>,
    pub openid: Option<OpenId>,
}

/// What is logged about a call.
pub struct Record {
    process: Arc<Process>,
    started: Instant,
    pub request_id: HeaderValue,
    client: Option<IpAddr>,
    method: String,
    path: String,
    pub caller: Option<String>,
    pub facts: Facts,
    pub errcode: Option<i64>,
    pub status: u16,
    pub error: Option<&'static str>,
    pub received: Arc<Meter>,
    bytes_out: usize,
}

impl Record {
    pub fn new(
        process: &Arc<Process>,
        request_id: HeaderValue,
        client: Option<IpAddr>,
        method: &http::Method,
        path: &str,
    ) -> Self {
        process.metrics.request_started();
        Self {
            process: process.clone(),
            started: Instant::now(),
            request_id,
            client,
            method: method.as_str().to_owned(),
            path: path.to_owned(),
            caller: None,
            facts: Facts::default(),
            errcode: None,
            status: CLIENT_CLOSED_REQUEST,
            error: None,
            received: Arc::default(),
            bytes_out: 0,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.process.metrics.request_ended();
        let access_log = &self.process.access_log;
        if !access_log.is_on() {
            return;
        }
        let request_id = self.request_id.to_str().unwrap_or_default();
        access_log.write(&AccessLine {
            method: &self.method,
            path: &self.path,
            route: "@internal",
            error: self.error,
            bytes_in: usize::try_from(self.received.bytes()).unwrap_or(usize::MAX),
            bytes_out: self.bytes_out,
            app_id: self.facts.app_id.as_ref().map(AppId::as_str),
            user: self.facts.openid.as_ref().map(|openid| access_log.user(openid, None)),
            errcode: self.errcode,
            listener: Some("internal"),
            caller: self.caller.as_deref(),
            ..AccessLine::new(request_id, self.client, self.status, self.started.elapsed())
        });
    }
}

/// A response body, with the record that is written at its end.
pub struct Recorded {
    body: ResponseBody,
    record: Record,
}

impl Recorded {
    pub fn new(body: ResponseBody, record: Record) -> Self {
        Self { body, record }
    }
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.record.bytes_out += frame.data_ref().map_or(0, Bytes::len);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
