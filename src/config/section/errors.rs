//! `[errors]`: the format of error bodies.

use http::HeaderValue;

use crate::config::document::table::Table;
use crate::message::error_body::ErrorBody;
use crate::message::rejection::Rejection;

/// `None`: the section is missing, or a problem was reported.
pub fn read(root: &Table<'_>) -> Option<ErrorBody> {
    let section = root.optional_table("errors")?;
    let template = section.require::<String>("template");
    let content_type = section.get::<HeaderValue>("content_type");
    let listed = section.entries::<String, i64>("codes");
    let errors = Rejection::errors();
    for (error, _) in &listed {
        if !errors.contains(&error.value.as_str()) {
            let help = format!("one of {}", errors.join(", "));
            section.problem(error, format!("unknown error \"{}\"", error.value), help);
        }
    }
    let codes = listed.into_iter().map(|(error, code)| (error.value, code.value)).collect();
    let content_type = content_type
        .map_or(HeaderValue::from_static("application/json"), |content_type| content_type.value);
    let body = template.and_then(|template| {
        let parsed = ErrorBody::parse(&template.value, content_type, codes);
        parsed.map_err(|message| section.problem(&template, message, "")).ok()
    });
    section.finish();
    body
}
