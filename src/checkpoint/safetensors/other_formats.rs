//! What a file that should be a safetensors file is instead, by its first bytes: what was found and
//! what to do about it.

use crate::units::printable;

/// How many of the first bytes are looked at.
pub(super) const FIRST_BYTES: usize = 512;
/// How much of a text is shown.
const SHOWN_CHARS: usize = 40;

/// What the first bytes of a file tell that is no safetensors file, and what to do about it.
pub(super) struct Other {
    pub what: String,
    pub hint: &'static str,
}

const CONVERT: &str = "convert it to safetensors with the tools of the model's framework";
const FETCH: &str = "fetch it again, and compare its size with that at its source";

/// Files of other programs, by how they begin.
const BEGINNINGS: [(&[u8], &str, &str); 8] = [
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.bin, .pt, .pth)", CONVERT),
    (b"\x80\x02", "a pickle, as old versions of torch.save write (.bin, .pt, .pth)", CONVERT),
    (b"\x80\x04", "a pickle", CONVERT),
    (b"GGUF", "a GGUF file of llama.cpp", CONVERT),
    (b"\x89HDF", "an HDF5 file (.h5)", CONVERT),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
];

/// Whether a file is a pointer of git-lfs, which stands for a file that has not been fetched.
pub(super) fn is_lfs_pointer(first: &[u8]) -> bool {
    first.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// What the file is, by its first bytes, if that can be told.
pub(super) fn recognise(first: &[u8]) -> Option<Other> {
    let other = |what: &str, hint| Some(Other { what: what.to_owned(), hint });
    if first.is_empty() {
        return other("it is empty (0 bytes)", FETCH);
    }
    if is_lfs_pointer(first) {
        let text = String::from_utf8_lossy(first);
        let size = text.lines().find_map(|line| line.strip_prefix("size ")).unwrap_or("some");
        let what = format!(
            "it is a git-lfs pointer, which stands for a file of {} bytes",
            printable(size)
        );
        return Some(Other { what, hint: "fetch the file itself with git lfs pull" });
    }
    if first.iter().all(|byte| *byte == 0) {
        return other("it begins with zeros, as a file whose download has not finished", FETCH);
    }
    if let Some((_, what, hint)) = BEGINNINGS.iter().find(|(begins, ..)| first.starts_with(begins))
    {
        return other(&format!("it is {what}"), hint);
    }
    let text = text_of(first)?;
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let shown = printable(&shown);
    if text.starts_with('<') {
        let hint = "it is perhaps the page of an error or a login: fetch the file again";
        return other(&format!("it is HTML or XML, which begins with `{shown}`"), hint);
    }
    if text.starts_with(['{', '[']) {
        let hint = "the name of an index of several files ends in .json";
        return other(&format!("it is JSON, which begins with `{shown}`"), hint);
    }
    other(&format!("it is text, which begins with `{shown}`"), FETCH)
}

/// The bytes as text, if all of them are; without the white space that it begins with.
fn text_of(first: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(first) {
        Ok(text) => text,
        // A character is cut in two where the bytes end.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&first[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace());
    (is_text && !text.trim().is_empty()).then(|| text.trim_start())
}
