package resolver

import "time"

// slot is an item's place in a queue. pos is the index plus one, so that the zero value is an item that is
// not queued.
type slot struct {
	at  time.Time
	pos int
}

type queued interface{ place() *slot }

// queue is a heap of items by time that knows where each item is, so that an item can be moved and removed.
type queue[T queued] struct{ items []T }

// first gives the item with the earliest time.
func (q *queue[T]) first() (item T, ok bool) {
	if len(q.items) == 0 {
		return item, false
	}
	return q.items[0], true
}

// put adds an item, or moves it to another time.
func (q *queue[T]) put(item T, at time.Time) {
	s := item.place()
	s.at = at
	if s.pos == 0 {
		q.items = append(q.items, item)
		s.pos = len(q.items)
	}
	q.down(q.up(s.pos - 1))
}

// remove takes an item out; one that is not queued is no error.
func (q *queue[T]) remove(item T) {
	s := item.place()
	if s.pos == 0 {
		return
	}
	i, last := s.pos-1, len(q.items)-1
	q.swap(i, last)
	var none T
	q.items[last] = none
	q.items = q.items[:last]
	s.pos = 0
	if i < last {
		q.down(q.up(i))
	}
}

func (q *queue[T]) swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].place().pos = i + 1
	q.items[j].place().pos = j + 1
}

func (q *queue[T]) before(i, j int) bool {
	return q.items[i].place().at.Before(q.items[j].place().at)
}

func (q *queue[T]) up(i int) int {
	for i > 0 && q.before(i, (i-1)/2) {
		q.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	return i
}

func (q *queue[T]) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(q.items); child++ {
			if q.before(child, least) {
				least = child
			}
		}
		if least == i {
			return
		}
		q.swap(i, least)
		i = least
	}
}
