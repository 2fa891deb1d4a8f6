// Compiles the rest of a source file for more than the baseline instruction set.
//
// A file that uses it keeps all it defines in an unnamed namespace, so that the linker can't serve
// a machine with a function that was compiled for a better one; for the same reason it includes
// only C headers and templates of its own.
#pragma once

#define MEGAINFER_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define MEGAINFER_TARGET(features) \
  MEGAINFER_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MEGAINFER_TARGET_END _Pragma("clang attribute pop")
#else
// Popping would strip templates, which GCC instantiates at the file's end, of the target.
#define MEGAINFER_TARGET(features) MEGAINFER_PRAGMA(GCC target(features))
#define MEGAINFER_TARGET_END
#endif
