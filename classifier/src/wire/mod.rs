//! Header views, one protocol per file.
