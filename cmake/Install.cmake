# What another project needs to embed the engine (examples/CMakeLists.txt is one): the program, the libraries, the
# headers of include/foresight, and a package that find_package(foresight) finds, with the target foresight::engine.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(foresight::engine ALIAS foresight_engine)
set_target_properties(foresight_engine PROPERTIES EXPORT_NAME engine)
get_property(modules GLOBAL PROPERTY FORESIGHT_MODULES)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/foresight)

install(TARGETS foresight)
install(TARGETS foresight_options ${modules} EXPORT foresight INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY include/foresight DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT foresight NAMESPACE foresight:: FILE foresightTargets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/foresightConfig.cmake.in ${PROJECT_BINARY_DIR}/foresightConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/foresightConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/foresightConfig.cmake ${PROJECT_BINARY_DIR}/foresightConfigVersion.cmake
        DESTINATION ${package_dir})
