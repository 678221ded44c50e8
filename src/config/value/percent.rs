//! Percentages, with at most two decimals.

/// The hundredths of a percent in a text such as `20` or `2.5`, from 0 to 10,000. `None`: it is
/// something else.
pub fn hundredths(text: &str) -> Option<u16> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let hundredths = (is_number(whole) && is_number(fraction) && fraction.len() <= 2)
        .then(|| format!("{whole}{fraction:0<2}").parse().ok())?;
    hundredths.filter(|hundredths| *hundredths <= 10_000)
}
