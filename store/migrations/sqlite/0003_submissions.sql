-- Which keys need not be remembered any longer, and which one a message was put under. No earlier release wrote any.
CREATE INDEX submission_expires ON submission(expires_at);
CREATE INDEX submission_message ON submission(message);
