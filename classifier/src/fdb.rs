//! The MAC table: which port a learned address was last seen at.
//!
//! Only routers' ports learn; every other workload's one address is fixed by the snapshot.
