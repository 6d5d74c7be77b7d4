package store

import (
	"context"
	"errors"

	"gatepost/message"
)

// database is what the writer changes, one transaction at a time, and where the engines differ. Whatever a method
// promises holds once the transaction is committed; an engine may send changes together as long as nothing asks for
// their result.
type database interface {
	begin(t *tx) error
	commit() error
	rollback() error // an error means that the connection is of no more use

	// prepare asks at once what jobs are going to want to know.
	prepare(t *tx, jobs []job) error
	// exec runs a statement and returns how many rows it changed; query runs one and calls scan for each row until it
	// returns false; change runs one whose effect nobody asks for.
	exec(query string, args ...any) (int64, error)
	query(scan func(scanner) (more bool, err error), query string, args ...any) error
	change(query string, args ...any) error
	// locking makes of a query of rows to be changed one that leaves out what others are changing.
	locking(query string) string

	load(t *tx) error // the last number and the highest id
	put(t *tx, m *message.Message, attrs string, b storedBody, own bool) error
	claimKey(t *tx, m *message.Message) (holder message.Duplicate, err error) // m itself, or the message whose the key is
	forgetKey(id message.ID) error                                            // frees the key that a message was put under
	cutKeys() string                                                          // the statement that deletes those which a time has passed, so many at most
	putEvent(t *tx, r *record) error
	settle(t *tx, s *message.Settlement) (ours bool, err error)
	due(t *tx, j *claimJob) ([]row, error)
	stamp(t *tx, j *claimJob) error
	release(t *tx, ids []message.RecipientID) error
	waits(t *tx, supersede []byte) bool                         // whether something may wait under a key
	again(t *tx, found []row) (now []row, err error)            // the same rows as they are now, to be changed unless owned
	takeBack(t *tx, id message.ID) (ns []int, err error)        // removes the recipients of a Put that failed
	end(t *tx, id message.RecipientID) error                    // removes an unowned row, but not its message
	endMessage(t *tx, id message.ID) error                      // removes a message without recipients
	keepSignature(id message.ID, kept *message.Signature) error // in the place of one that is there; it goes with the message
	leftovers(t *tx, after message.ID) (found []message.ID, last message.ID, end bool, err error)
	giveBack(t *tx) (more bool, err error) // gives unused space back to the file system, a little at a time

	// read is query beside the transaction.
	read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error
	close() error
}

var errNotOpen = errors.New("the database is not open")

// scanner is a row that a query found.
type scanner interface{ Scan(to ...any) error }

// storedBody is a body as it is written with its message.
type storedBody struct {
	format int   // what data is
	keyID  int64 // of the key that it is sealed with; 0 for none
	octets int   // 0, or the length of a body in parts, where data is empty
	data   []byte
}
