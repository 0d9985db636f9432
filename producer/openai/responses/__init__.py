"""OpenAI's `/v1/responses`. A response is a generation job; what else it is asked and told lies in the job's `front`.

`asked.py` reads a request, `items.py` and `truncated.py` its conversation, `answered.py` writes the document,
`streamed.py` its events, `stored.py` finds earlier ones, `specs.py` makes the job, `routes.py` has the addresses.
Nothing of it is kept in a process: any web process answers for any response, for as long as its job's record is kept.
"""
