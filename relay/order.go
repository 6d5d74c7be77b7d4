package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
)

// orders are the submissions with a key that wait for their answer. The zero value is ready.
type orders struct {
	mu      sync.Mutex
	waiting map[string]*order // by key
}

// order is one submission that others may join.
type order struct {
	done     chan struct{}
	print    int32 // its fingerprint
	receipts []message.Receipt
	err      error
}

// once calls do, or where do for the same key is under way waits for what that returns. Nothing is remembered: what was
// accepted the spool knows. With another fingerprint it is no repetition.
func (w *orders) once(ctx context.Context, key string, print int32, do func() ([]message.Receipt, error)) ([]message.Receipt, error) {
	o, first := w.join(key, print)
	if first {
		defer w.leave(key, o)
		o.err = errors.New("the submission that this one repeats came to no end") // where do panics
		o.receipts, o.err = do()
		return o.receipts, o.err
	}
	if differ(o.print, print) {
		return nil, message.ErrReused
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the submission that this one repeats: %w", context.Cause(ctx))
	}
	if o.err != nil {
		return nil, o.err
	}
	return asRepeated(o.receipts), nil
}

func (w *orders) join(key string, print int32) (o *order, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.waiting[key]; o != nil {
		return o, false
	}
	if w.waiting == nil {
		w.waiting = map[string]*order{}
	}
	o = &order{done: make(chan struct{}), print: print}
	w.waiting[key] = o
	return o, true
}

func (w *orders) leave(key string, o *order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, key)
	close(o.done)
}

// differ reports whether two submissions, which have a key in common, show that they are not the same.
func differ(a, b int32) bool { return a != b && a != 0 && b != 0 }

func asRepeated(receipts []message.Receipt) []message.Receipt {
	again := make([]message.Receipt, len(receipts))
	for i, r := range receipts {
		again[i] = message.Receipt{ID: r.ID, Repeated: true}
	}
	return again
}

// repeated turns the error of a Put into an answer: what was accepted before was accepted.
func repeated(err error, print int32, n int) ([]message.Receipt, error) {
	dup, ok := errors.AsType[*message.Duplicate](err)
	if !ok {
		return nil, fmt.Errorf("store the message: %w", err)
	}
	if differ(dup.Fingerprint, print) {
		return nil, message.ErrReused
	}
	receipts := make([]message.Receipt, n)
	for i := range receipts {
		receipts[i] = message.Receipt{ID: dup.Of, Repeated: true}
	}
	return receipts, nil
}

// forgetKey has ss free the key of a message that was refused for good, where its client still waits: it is bound then, as
// by notify, and whoever has its channel must send on it. A client that was told 250 already has nothing to repeat.
func (t *try) forgetKey(ss []message.Settlement, client chan<- *reply.Error) chan<- *reply.Error {
	if hook, _ := t.msg.Ordered(); hook == "" {
		return client
	}
	if client == nil {
		client = t.lane.bind(t.msg.ID)
	}
	ss[0].Forget = client != nil
	return client
}

// Admits implements ingress.Caller.
func (r *Relay) Admits(listener, client string, p message.Peer) error {
	return r.generation.Load().policy.Admits(listener, client, p)
}

// AdmitsAny implements ingress.Caller.
func (r *Relay) AdmitsAny(listener string, p message.Peer) bool {
	return r.generation.Load().policy.AdmitsAny(listener, p)
}

// Token implements ingress.Caller.
func (r *Relay) Token(listener, client, token string) error {
	return r.generation.Load().policy.Token(listener, client, token)
}

// refused records that ordered mail was refused for good before it was queued: not every caller can be told so, and none
// shows it where an operator would look.
func (r *Relay) refused(s *message.Submission, err error) {
	why := reply.Of(err)
	if s.Order == nil || why.Temporary() || len(s.To) == 0 {
		return
	}
	r.spool.Record(event.Event{At: time.Now(), Kind: event.Bounced, Message: r.spool.NewID(), Stream: s.Order.Stream, MailKind: r.kindOf(s.Order.Stream),
		Address: s.To[0].String(), Data: event.Data{Client: s.Client, Hook: s.Order.Hook, Type: s.Order.Type, Code: why.Code, Text: message.Mask(why.Text)}})
}

// Limited records that mail was refused because of a limit, which text names.
func (r *Relay) Limited(s *message.Submission, text string) {
	r.spool.Record(event.Event{At: time.Now(), Kind: event.Limited, Stream: s.Order.Stream, MailKind: r.kindOf(s.Order.Stream),
		Address: s.To[0].String(), Data: event.Data{Client: s.Client, Hook: s.Order.Hook, Type: s.Order.Type, Text: text}})
}

// kindOf returns the kind of a stream; auth, which masks most, where it is not known.
func (r *Relay) kindOf(stream string) message.Kind {
	if s := r.generation.Load().config.Stream[stream]; s != nil {
		return s.Kind
	}
	return message.Auth
}
