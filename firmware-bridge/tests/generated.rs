//! The committed protobuf code is what `proto/firmware.proto` gives.

use std::path::Path;

#[test]
#[allow(clippy::disallowed_methods, reason = "writes the generated file on demand")]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["firmware.proto"], [root.join("proto")]).unwrap();
    let mut modules = prost_build::Config::new()
        .generate(
            descriptors
                .file
                .into_iter()
                .map(|file| (prost_build::Module::from_protobuf_package_name(file.package()), file))
                .collect(),
        )
        .unwrap();
    assert_eq!(modules.len(), 1);
    let code = modules.drain().next().unwrap().1;
    let place = root.join("src/message.rs");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&place, &code).unwrap();
    }
    let committed = std::fs::read_to_string(&place).unwrap_or_default();
    assert!(
        committed == code,
        "src/message.rs is not what proto/firmware.proto gives: run UPDATE_GENERATED=1 cargo test -p firmware-bridge --test generated"
    );
}
