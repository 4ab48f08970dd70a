//! The C++ of an emulated unit: runtime, kernel text, table of entries.

use chronicals_kernels::gpu::{Unit, compile};

/// The whole text.
///
/// # Errors
/// A declaration of shared memory is not written as [`shared_memory`] wants it.
pub fn of(unit: &Unit) -> Result<String, String> {
    let kernels: Vec<String> = compile::text(unit).lines().map(shared_memory).collect::<Result<_, _>>()?;
    let entries: String = unit.entries.iter().map(|name| format!(" EMULATED_ENTRY({name})")).collect();
    let parts = [
        ("fibers.h", include_str!("fibers.h")),
        ("shim.h", include_str!("shim.h")),
        ("tensor.h", include_str!("tensor.h")),
    ];
    let before: String = parts.map(|(name, text)| format!("#line 1 \"emulator/{name}\"\n{text}\n")).concat();
    let after = format!(
        "#define EMULATED_ENTRIES{entries}\n#line 1 \"emulator/launch.h\"\n{}",
        include_str!("launch.h")
    );
    Ok(format!("{before}{}\n{after}", kernels.join("\n")))
}

/// A line with its declaration of shared memory, if any, as C++. The convention: one variable, alone on its line at the
/// start of it, within a function:
///
/// ```text
/// __shared__ [__align__(16)] float tile[8][WARP];      becomes a static, undefined again in each block
/// extern __shared__ [__align__(16)] float shared[];    becomes a pointer to the launch's dynamic memory
/// ```
fn shared_memory(line: &str) -> Result<String, String> {
    let code = line.split("//").next().unwrap_or_default().trim();
    if !code.contains("__shared__") {
        return Ok(line.to_string());
    }
    let wrong = || format!("not one declaration of shared memory alone on its line: {code}");
    let declaration = code.strip_suffix(';').ok_or_else(wrong)?;
    if declaration.contains([';', '=', '{']) {
        return Err(wrong());
    }
    if let Some(rest) = declaration.strip_prefix("extern __shared__ ") {
        let (kind, name) = typed(rest.strip_suffix("[]").ok_or_else(wrong)?).ok_or_else(wrong)?;
        return Ok(format!("{kind}* const {name} = ({kind}*)emulated::dynamic;"));
    }
    let rest = declaration.strip_prefix("__shared__ ").ok_or_else(wrong)?;
    let (_, name) = typed(rest.split('[').next().unwrap_or(rest)).ok_or_else(wrong)?;
    Ok(format!(
        "static {rest}; {{ static unsigned long long filled; emulated::undefined(&{name}, sizeof {name}, filled); }}"
    ))
}

/// Type and name of `[__align__(N)] TYPE NAME`.
fn typed(declaration: &str) -> Option<(&str, &str)> {
    let declaration = match declaration.trim().strip_prefix("__align__(") {
        Some(rest) => rest.split_once(')')?.1.trim(),
        None => declaration.trim(),
    };
    let (kind, name) = declaration.rsplit_once(' ')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    (is_name && !kind.contains([',', '('])).then(|| (kind.trim(), name))
}

#[test]
fn shared_memory_is_declared_in_one_way() {
    let becomes = |line: &str| shared_memory(line).unwrap();
    assert_eq!(becomes("int x;  // __shared__"), "int x;  // __shared__");
    assert_eq!(
        becomes("    extern __shared__ __align__(16) float shared[];  // why"),
        "float* const shared = (float*)emulated::dynamic;"
    );
    assert!(
        becomes("  __shared__ unsigned short tile[2][64 * 8];")
            .starts_with("static unsigned short tile[2][64 * 8]; {")
    );
    assert!(
        becomes("__shared__ __align__(16) Pack tile[2];").contains("undefined(&tile, sizeof tile, filled)")
    );
    for wrong in [
        "__shared__ int a, b;",
        "int x; __shared__ int a;",
        "__shared__ int a = 1;",
        "extern __shared__ int a;",
    ] {
        assert!(shared_memory(wrong).is_err(), "{wrong}");
    }
}
