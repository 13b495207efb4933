package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The tool call that every model of the stand-ins asks for, and what it must have printed for the model to be content.
const (
	toolCommand = "expr 40 + 2 | sed s/^/exitgate-tool-/"
	toolOutput  = "exitgate-tool-42"
	firstLine   = "The answer begins here."
	lastLine    = "FINISHED after exitgate-tool-42."
)

// messages stands for the Anthropic Messages API. Asked with a tool named Bash it answers with a call of it; told the outcome it
// answers in two lines, and holds back the second until go on is closed, so that a client which waits for the end shows nothing.
type messages struct {
	once sync.Once
	on   chan struct{}
}

func newMessages() *messages { return &messages{on: make(chan struct{})} }

func (m *messages) goOn() { m.once.Do(func() { close(m.on) }) }

type messagesRequest struct {
	Model    string
	Stream   bool
	Tools    []struct{ Name string }
	Messages []struct{ Content json.RawMessage }
}

func (r messagesRequest) offers(tool string) bool {
	for _, t := range r.Tools {
		if t.Name == tool {
			return true
		}
	}
	return false
}

// ServeHTTP answers the calls a coding agent makes.
func (m *messages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch {
	case r.URL.Path == "/v1/messages/count_tokens":
		reply(w, `{"input_tokens":42}`)
	case r.URL.Path == "/v1/models":
		reply(w, `{"data":[],"has_more":false}`)
	case r.URL.Path != "/v1/messages":
		reply(w, `{}`)
	default:
		m.message(w, body)
	}
}

func reply(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, text)
}

func (m *messages) message(w http.ResponseWriter, body []byte) {
	var req messagesRequest
	if err := json.Unmarshal(body, &req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		reply(w, `{"type":"error","error":{"type":"invalid_request_error","message":"no JSON"}}`)
		return
	}
	last := ""
	if n := len(req.Messages); n > 0 {
		last = string(req.Messages[n-1].Content)
	}
	switch {
	case !req.Stream:
		reply(w, fmt.Sprintf(`{"id":"msg_1","type":"message","role":"assistant","model":%q,"content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":1}}`, req.Model))
	case !req.offers("Bash"):
		m.stream(w, req.Model, "end_turn", textBlock("ok"))
	case strings.Contains(last, `"tool_result"`) && strings.Contains(last, toolOutput):
		m.stream(w, req.Model, "end_turn", textBlock(firstLine+"\n\n", "", lastLine))
	case strings.Contains(last, `"tool_result"`):
		m.stream(w, req.Model, "end_turn", textBlock("the tool did not work: "+last))
	default:
		input, _ := json.Marshal(map[string]string{"command": toolCommand, "description": "Say a number"})
		m.stream(w, req.Model, "tool_use", []string{
			`"content_block":{"type":"tool_use","id":"toolu_1","name":"Bash","input":{}}`,
			fmt.Sprintf(`"delta":{"type":"input_json_delta","partial_json":%q}`, input),
		})
	}
}

// textBlock is a block of text in pieces; "" is where it waits.
func textBlock(pieces ...string) []string {
	block := []string{`"content_block":{"type":"text","text":""}`}
	for _, p := range pieces {
		if p == "" {
			block = append(block, "")
			continue
		}
		block = append(block, fmt.Sprintf(`"delta":{"type":"text_delta","text":%q}`, p))
	}
	return block
}

func (m *messages) stream(w http.ResponseWriter, model, stop string, block []string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	send := func(kind, rest string) {
		fmt.Fprintf(w, "event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, rest)
		http.NewResponseController(w).Flush()
	}
	send("message_start", fmt.Sprintf(`,"message":{"id":"msg_1","type":"message","role":"assistant","model":%q,"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"output_tokens":1}}`, model))
	send("ping", "")
	for i, part := range block {
		switch {
		case part == "":
			m.wait()
		case i == 0:
			send("content_block_start", `,"index":0,`+part)
		default:
			send("content_block_delta", `,"index":0,`+part)
		}
	}
	send("content_block_stop", `,"index":0`)
	send("message_delta", fmt.Sprintf(`,"delta":{"stop_reason":%q,"stop_sequence":null},"usage":{"output_tokens":15}`, stop))
	send("message_stop", "")
}

// wait ends when the rest may be sent; a client that never shows the first line gets it in the end, and fails by its screen.
func (m *messages) wait() {
	select {
	case <-m.on:
	case <-time.After(20 * time.Second):
	}
}
