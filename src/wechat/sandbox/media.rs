//! Temporary media: uploadTempMedia and getTempMedia.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_DISPOSITION;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde_json::json;

use super::call::Call;
use super::errors::Failure;
use super::multipart::{self, Kind};
use super::{Response, Sandbox, json_response, response, text_of_letters};
use crate::clock::Clock;

/// Largest image, in bytes.
const LARGEST: usize = 10 << 20;

/// Bytes of all files that are kept; the oldest are forgotten.
const CAPACITY: u64 = 64 << 20;

const LIFETIME: Duration = Duration::from_secs(3 * 24 * 3600);

/// The files that were uploaded, by their ids.
pub struct MediaFiles {
    files: Cache<String, MediaFile>,
    clock: Clock,
}

#[derive(Clone)]
struct MediaFile {
    app_id: String,
    kind: Kind,
    content: Bytes,
    uploaded_at: Duration,
}

impl MediaFiles {
    pub fn new(clock: Clock) -> Self {
        let size = |_: &String, file: &MediaFile| u32::try_from(file.content.len());
        let files = Cache::builder()
            .max_capacity(CAPACITY)
            .weigher(move |id, file| size(id, file).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { files, clock }
    }

    fn get(&self, app_id: &str, id: &str) -> Option<MediaFile> {
        let file = self.files.get(id).filter(|file| file.app_id == app_id)?;
        (self.clock.now() < file.uploaded_at + LIFETIME).then_some(file)
    }
}

impl Sandbox {
    /// media.uploadTempMedia. Mini Programs can upload images only.
    pub(super) async fn upload_media(&self, call: Call) -> Result<Response, Failure> {
        if call.parameter("type") != "image" {
            return Err(40004.into());
        }
        let file = multipart::read_image(call.request, LARGEST).await?;
        let media_id = text_of_letters(64);
        let uploaded = MediaFile {
            app_id: call.app_id,
            kind: file.kind,
            // A slice would keep the whole body.
            content: Bytes::copy_from_slice(&file.content),
            uploaded_at: self.clock.now(),
        };
        self.media.files.insert(media_id.clone(), uploaded);
        Ok(json_response(&json!({
            "type": "image",
            "media_id": media_id,
            "created_at": self.unix_seconds(),
        })))
    }

    /// media.getTempMedia.
    pub(super) fn get_media(&self, call: &Call) -> Result<Response, Failure> {
        let media_id = call.parameter("media_id");
        let file = self.media.get(&call.app_id, &media_id).ok_or(40007)?;
        let (extension, content_type) = file.kind.names();
        let mut response = response(200, content_type, file.content);
        let disposition = format!("attachment; filename=\"{media_id}.{extension}\"");
        if let Ok(disposition) = HeaderValue::try_from(disposition) {
            response.headers_mut().insert(CONTENT_DISPOSITION, disposition);
        }
        Ok(response)
    }
}
