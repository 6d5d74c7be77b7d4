package policy

import "container/list"

// lru is a map of bounded size that forgets what was not used for longest. It is not safe for concurrent use.
type lru[K comparable, V any] struct {
	most  int
	byKey map[K]*list.Element // of entry[K, V]
	order list.List           // most recently used first
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](most int) *lru[K, V] {
	return &lru[K, V]{most: most, byKey: map[K]*list.Element{}}
}

// get returns what is kept under key, the zero value for nothing.
func (l *lru[K, V]) get(key K) (v V, ok bool) {
	e := l.byKey[key]
	if e == nil {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(entry[K, V]).value, true
}

// put keeps v under key, in place of what was there.
func (l *lru[K, V]) put(key K, v V) {
	l.drop(key)
	l.byKey[key] = l.order.PushFront(entry[K, V]{key, v})
	if l.order.Len() > l.most {
		l.drop(l.order.Back().Value.(entry[K, V]).key)
	}
}

func (l *lru[K, V]) drop(key K) {
	if e := l.byKey[key]; e != nil {
		l.order.Remove(e)
		delete(l.byKey, key)
	}
}
