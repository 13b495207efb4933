package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"exitgate/integration/rig"
)

const (
	openaiHost = "api.openai.com"
	openaiKey  = "sk-proj-FAKE-clients-openai-key-0123456789"
)

func codex() client {
	return client{
		name: "codex", title: "Codex CLI", presets: "`codex`",
		packages: []pkg{{name: "@openai/codex", version: "0.169.0-linux-{arch}", as: "codex"}},
		needs:    "the key in `/run/secrets/openai`; to be started with `-c openai_base_url=\"$OPENAI_BASE_URL\"`, because it does not read that variable",
		modes: func(files map[string]string) []mode {
			m := mode{
				policy: "version: 1\npresets: [codex]\n", secrets: map[string]string{"openai": openaiKey}, dummy: "OPENAI_API_KEY", denied: []string{"*", "GET", "chatgpt.com"},
				place: map[string]string{"/opt/codex": files["codex"]},
				stand: func(s *scene) error { return s.serve(openaiHost, rig.Server{Handler: http.HandlerFunc(responses)}) },
			}
			const start = `codex=$(echo /opt/codex/vendor/*/bin/codex); $codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox -m stand-in `
			run, open := m, m
			run.name = "exec"
			run.argv = shell(start + `-c openai_base_url="$OPENAI_BASE_URL" "` + question + `" </dev/null`)
			run.judge = func(s *scene) error {
				return errors.Join(s.said(lastLine), s.toolRan(openaiHost), s.sent(openaiHost, "Authorization", "Bearer "+openaiKey))
			}
			open.name, open.open, open.wants, open.env = "no fence", true, []string{openaiHost}, []string{"CODEX_API_KEY=" + openaiKey, "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"}
			open.argv = shell(start + `"` + question + `" </dev/null`)
			open.judge = func(s *scene) error { return s.said(lastLine) }
			return []mode{run, open}
		},
	}
}

// toolRan checks that the output of the tool that the model asked for came back to it.
func (s *scene) toolRan(host string) error {
	for _, seen := range s.upstreams[host].Seen() {
		if strings.Contains(string(seen.Body), toolOutput) {
			return nil
		}
	}
	return errors.New("the tool's output never arrived")
}

// responses stands for OpenAI's Responses API: a call of whatever shell tool the client offers, then a text.
func responses(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("Upgrade") != "" { // it tries a WebSocket first
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	if r.URL.Path != "/v1/responses" || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		reply(w, `{"error":{"message":"no such thing"}}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(kind string, fields map[string]any) {
		fields["type"] = kind
		data, _ := json.Marshal(fields)
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
		http.NewResponseController(w).Flush()
	}
	item := map[string]any{"type": "message", "role": "assistant", "id": "msg_1", "content": []any{map[string]any{"type": "output_text", "text": lastLine}}}
	if !strings.Contains(string(body), "function_call_output") { // a tool that failed is not asked again
		item = shellCall(string(body))
	}
	send("response.created", map[string]any{"response": map[string]any{"id": "resp_1"}})
	send("response.output_item.done", map[string]any{"output_index": 0, "item": item})
	send("response.completed", map[string]any{"response": map[string]any{"id": "resp_1", "usage": map[string]any{"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}}})
}

// shellCall is a call of the shell tool by the name and arguments that the request offers.
func shellCall(request string) map[string]any {
	name, arguments := "shell", map[string]any{"command": []string{"/bin/sh", "-c", toolCommand}}
	switch {
	case strings.Contains(request, `"exec_command"`):
		name, arguments = "exec_command", map[string]any{"cmd": toolCommand}
	case strings.Contains(request, `"shell_command"`):
		name, arguments = "shell_command", map[string]any{"command": toolCommand}
	}
	text, _ := json.Marshal(arguments)
	return map[string]any{"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name, "arguments": string(text)}
}
