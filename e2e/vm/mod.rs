//! Tests in a virtual machine: a file here exports `TESTS` (`tests![…]`) and has one line below.

mod machine;

kilo_e2e::test_files! {
    crash,
    lane,
    mesh_drift,
    mesh_ipip,
    mesh_kernel,
    mesh_overlay,
    taking_over,
    wireguard_kernel,
}
