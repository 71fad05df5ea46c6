//! Costs that were measured on this machine, as `weir-dataplane tune --calibrate` leaves them in a file.

use std::io::{self, Read as _};
use std::path::Path;

use crate::plane::choice::Costs;

/// Longest file in bytes that is read.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Reads the costs; `None` when nothing was ever measured here.
///
/// # Errors
/// What the system says, and `InvalidData` for a file that is something else.
pub fn load(path: &Path) -> io::Result<Option<Costs>> {
    let mut text = String::new();
    match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?.take(FILE_LEN_MAX).read_to_string(&mut text)?,
    };
    serde_json::from_str(&text).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes the costs, whole or not at all.
///
/// # Errors
/// What the system says.
pub fn save(path: &Path, costs: &Costs) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let aside = path.with_extension("new");
    std::fs::write(&aside, serde_json::to_string_pretty(costs)? + "\n")?;
    std::fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_survive_the_file_and_nonsense_is_refused() {
        let directory = std::env::temp_dir().join(format!("weir-calibration-{}", std::process::id()));
        let file = directory.join("sub/calibration.json");
        assert_eq!(load(&file).unwrap(), None);
        let costs = Costs { socket_rx_ns: 1, ..Costs::BUILT_IN };
        save(&file, &costs).unwrap();
        assert_eq!(load(&file).unwrap(), Some(costs));
        for text in ["", "{}", "{\"socket_rx_ns\": -1}", "[]"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(load(&file).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
