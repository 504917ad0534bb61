# Compiler settings and the three verbs the folders use: ela_library, ela_program, ela_test.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
find_program(ELA_CCACHE ccache)
if(ELA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${ELA_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${ELA_CCACHE}")
endif()

add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wno-unused-parameter;-Wno-missing-field-initializers>")
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety> $<$<COMPILE_LANGUAGE:CXX>:-Werror=thread-safety>)
endif()
if(ELA_SANITIZE)
  add_compile_options(
    "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${ELA_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
  add_link_options(-fsanitize=${ELA_SANITIZE})
endif()
if(ELA_SANITIZE MATCHES "address")  # leaks are told apart by whole stacks
  string(CONCAT ELA_TEST_ENVIRONMENT "LSAN_OPTIONS=fast_unwind_on_malloc=0:print_suppressions=0"
         ":suppressions=${PROJECT_SOURCE_DIR}/tests/support/lsan.supp")
elseif(ELA_SANITIZE STREQUAL "thread")
  set(ELA_LOCKS "${PROJECT_SOURCE_DIR}/tests/support/tsan_locks.cc")
  set(ELA_TEST_ENVIRONMENT
      "TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=${PROJECT_SOURCE_DIR}/tests/support/tsan.supp")
endif()

# ela_library(name DEPENDS targets...): one static library of every .cc below the current folder, main programs
# (*_main.cc) excepted.
function(ela_library name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;EXCLUDE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cc")
  list(FILTER sources EXCLUDE REGEX "_main\\.cc$")
  foreach(pattern ${ARG_EXCLUDE})
    list(FILTER sources EXCLUDE REGEX "${pattern}")
  endforeach()
  if(NOT sources)
    file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/empty.cc" "")
    set(sources "${CMAKE_CURRENT_BINARY_DIR}/empty.cc")
  endif()
  add_library(${name} STATIC ${sources})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS})
endfunction()

# ela_program(name source DEPENDS targets...)
function(ela_program name source)
  cmake_parse_arguments(ARG "" "" "DEPENDS" ${ARGN})
  add_executable(${name} ${source} ${ELA_LOCKS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS})
endfunction()

# ela_test(name DEPENDS targets...): one GoogleTest program of every *_test.cc in the current folder tree; ctest
# sees each test case under "name/".
function(ela_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "DEPENDS;SOURCES" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB_RECURSE ARG_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc")
  endif()
  if(NOT ARG_SOURCES)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES} ${ELA_LOCKS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} ela_test_support GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} TEST_PREFIX "${name}/" DISCOVERY_MODE PRE_TEST
                       PROPERTIES TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${ELA_TEST_ENVIRONMENT}")
endfunction()
