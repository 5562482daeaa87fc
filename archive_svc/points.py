"""The fault points of a month's way, each with what is true when the process dies there."""

from chassis.faults import declare

AFTER_FREEZE = declare("archive.after_freeze", "No row of the month changes any more; nothing is copied.")
AFTER_PLAN = declare("archive.after_plan", "The month is cut into parts; nothing is copied.")
AFTER_FIRST_CHUNK = declare("archive.after_first_chunk", "Rows of a part are being read; nothing is stored.")
AFTER_LAST_CHUNK = declare("archive.after_last_chunk", "All rows of a part were read; nothing is stored.")
AFTER_ENCODE = declare("archive.after_encode", "A segment is in memory; nothing is stored.")
AFTER_SEGMENT = declare("archive.after_segment", "A segment is stored and catalogued; others may be missing.")
AFTER_EXPORT = declare("archive.after_export", "Every part is stored; nobody read it back.")
AFTER_READ_BACK = declare("archive.after_read_back", "A segment was read back and is as it was written.")
AFTER_PROOF = declare(
    "archive.after_proof", "Every row is proven to be in a segment; readers know nothing of it."
)
BEFORE_MANIFEST = declare(
    "archive.before_manifest", "A manifest is in memory, and nobody asks any more whether it may be stored."
)
AFTER_MANIFEST = declare("archive.after_manifest", "The manifest is stored; readers still read the tables.")
BEFORE_COMMIT = declare("archive.before_commit", "Everything is ready; readers still read the tables.")
AFTER_COMMIT = declare("archive.after_commit", "Readers read the copy; the tables are all there.")
BEFORE_DETACH = declare("archive.before_detach", "The tables are to be detached; they hang on their parents.")
BETWEEN_DETACHES = declare(
    "archive.between_detaches", "One table stands alone; the other hangs on its parent."
)
AFTER_DETACH = declare("archive.after_detach", "Both tables stand alone; the catalog does not know.")
AFTER_GRACE = declare("archive.after_grace", "Both tables stand alone and have a time to go.")
BEFORE_DROP = declare("archive.before_drop", "Every segment was seen in S3; the tables are there.")
AFTER_DROP = declare("archive.after_drop", "The tables are gone, and the catalog says so.")
AFTER_MAKE_TABLES = declare(
    "archive.after_make_tables", "A month that comes back has tables, empty and alone."
)
AFTER_COPY_BACK = declare("archive.after_copy_back", "A segment's rows are back; readers read the copy.")
AFTER_RESTORE = declare("archive.after_restore", "Readers read the tables, which are what was proven.")
BEFORE_SWAP = declare("archive.before_swap", "A segment without a user's rows is stored; the old one counts.")
AFTER_AMENDMENT = declare(
    "archive.after_amendment", "An amendment is stored in S3; the shard does not know, and nobody was told."
)
BEFORE_RECALL = declare(
    "archive.before_recall", "A user's rows are out of the archive; statements may show them still."
)
BEFORE_DELETE = declare(
    "archive.before_delete", "Segments and manifest without a user's rows count; the old ones are there."
)
BEFORE_SWEEP = declare("archive.before_sweep", "A stray is noted and about to be deleted; it is there.")
AFTER_SWAP = declare("archive.after_swap", "A segment without a user's rows counts; the old one is there.")
