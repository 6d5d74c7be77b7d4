-- Which keys need not be remembered any longer, and which one a message was put under. No earlier release wrote any.
CREATE INDEX submission_expires ON submission(expires_at);
CREATE INDEX submission_message ON submission(message);
ALTER TABLE submission SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);
