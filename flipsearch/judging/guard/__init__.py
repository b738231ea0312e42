"""Guard models as judges: a published prompt, and how likely the model finds each of its possible answers.

template.py   a guard's prompt as a file with slots, and how content is kept from speaking the template's language
answers.py    what a guard can answer, what each answer says, and how probabilities become a decision
asking.py     texts to ids and ids to decisions, with the loaded model
judge.py      the base class of the judges
"""
